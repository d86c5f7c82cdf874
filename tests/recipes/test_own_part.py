"""A method of your own needs no change to densevl: a part from another file runs wherever a recipe runs."""

from __future__ import annotations

import json
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import oracle_clip
import pytest
import torch
from typer.testing import CliRunner

from conftest import PHOTOS
from densevl import Segmenter
from densevl.cli import app
from densevl.errors import RecipeError
from densevl.evaluation import Experiment, task_of
from densevl.inference import slide
from densevl.recipes import (
    Addition,
    Attention,
    Batch,
    Pass,
    Readout,
    Recipe,
    SecondStream,
    SelfAttention,
    Spread,
    Step,
)
from densevl.recipes.catalogue import last_block
from densevl.recipes.tower import Grid

DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"
TOOLS = Path(__file__).parents[2] / "tools" / "recipes"
SMALL = {"short_side": 48, "crop": 32, "stride": 16}


@dataclass(frozen=True, repr=False)
class Checkerboard(Attention):
    """Values of patches on white squares only, doubled."""

    gain: float = 2.0
    patches_only = True

    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        rows, columns = torch.meshgrid(*map(torch.arange, run.grid), indexing="ij")
        return self.gain * v * ((rows + columns) % 2 == 0).flatten()[:, None]

    def __str__(self) -> str:
        return f"patches on white squares read their own value {self.gain:g} times"


@dataclass(frozen=True, repr=False)
class Centre(Step):
    """The mean of all patches taken off."""

    def apply(self, batch: Batch, x_BND: torch.Tensor, cls_B1D: torch.Tensor, grid: Grid) -> torch.Tensor:
        return x_BND - x_BND.mean(dim=1, keepdim=True)

    def __str__(self) -> str:
        return "the mean patch is taken off"


MINE = Recipe("checkerboard", attention=Checkerboard(), residual=False, ffn=False, after=(Centre(),))


def test_it_does_what_its_formula_says(tiny) -> None:
    pixels = torch.randn(2, 3, 40, 56)
    got = tiny.encode_dense(pixels, MINE).features
    tower = tiny.tower
    x = tower.embed(pixels, "scale_factor")
    for index in range(tower.depth - 1):
        x = tower.run(index, x, (5, 7))
    block = tower.view(tower.depth - 1, (5, 7))
    v = block.project(block.norm(x[:, 1:]), "v")["v"]
    white = torch.tensor([(y + x) % 2 == 0 for y in range(5) for x in range(7)])
    y = block.merge(2 * v * white[:, None])
    want = tower.read(y - y.mean(dim=1, keepdim=True)).mT.unflatten(2, (5, 7))
    torch.testing.assert_close(got, want)


def test_it_prints_and_explains_itself() -> None:
    assert eval(repr(MINE), {**globals(), "Recipe": Recipe}) == MINE
    assert "white squares read their own value 2 times" in MINE.explain()
    assert "after it the mean patch is taken off" in MINE.explain()


def test_it_runs_in_a_segmenter_and_in_windows(tiny) -> None:
    result = Segmenter(tiny, MINE, templates="photo", protocol=SMALL)(PHOTOS / "cat.jpg", ["cat", "dog"])
    assert result.meta["recipe"] == repr(MINE)
    assert result.labels.shape == (300, 451)
    assert slide(tiny, torch.randn(1, 3, 40, 56), ["a", "b"], recipe=MINE, crop=32, stride=16).isfinite().all()


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """The example of the documentation, as a file on the path."""
    (code,) = re.findall(r"```python\n(from dataclasses import dataclass\n.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "my_documented_methods.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return "my_documented_methods"


def test_the_documented_one_runs_from_the_command_line(module, tmp_path) -> None:
    out = tmp_path / "out"
    asked = ["segment", str(PHOTOS / "cat.jpg"), "--model", "mini", "--labels", "cat, dog", "--out", str(out)]
    done = CliRunner().invoke(app, [*asked, "--recipe", f"{module}:MINE"])
    assert done.exit_code == 0, done.output
    assert "MeanAttention(0.8)" in json.loads((out / "cat.json").read_text())["meta"]["recipe"]
    shown = CliRunner().invoke(app, ["recipes", "show", f"{module}:MINE"])
    assert shown.exit_code == 0
    assert "each patch reads its own value and 0.2 of the mean" in re.sub(r"\s+", " ", shown.output)
    wrong = CliRunner().invoke(app, [*asked, "--recipe", f"{module}:YOURS"])
    assert wrong.exit_code == 2
    assert "cannot be imported" in wrong.output + wrong.stderr


def test_the_documented_one_runs_in_an_evaluation(module, monkeypatch) -> None:
    pytest.importorskip("cv2", exc_type=ImportError)
    experiment = Experiment("rendered", model="mini", recipe=f"{module}:MINE")

    class Classes:
        background = False

        def labels(self, strings):
            from densevl.vocabulary import LabelSet

            return LabelSet.parse(["cat", "dog"])

    class Data:
        classes = Classes()

    predictor = task_of(experiment, Data()).predictor()
    assert predictor.segmenter.recipe.name == "mean"
    assert predictor(np.zeros((96, 96, 3), np.uint8)).labels.shape == (96, 96)


@pytest.mark.parametrize("diff", ["example.diff", "example_part.diff"])
def test_the_worked_recipes_of_the_page_equal_their_oracles(golden_clip, diff, monkeypatch) -> None:
    """Every file of the diff is taken as it is printed."""
    added = {
        file.partition(" ")[0]: re.sub(r"^\+", "", body, flags=re.MULTILINE)
        for file, body in re.findall(
            r"^\+\+\+ (\S+)\n((?:\+(?!\+\+).*\n)+)", (TOOLS / diff).read_text(), flags=re.MULTILINE
        )
    }
    catalogue = {**vars(last_block)}
    if part := added.get("densevl/recipes/parts/recursive.py"):
        module = types.ModuleType("recursive")
        monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
        exec(part, vars(module))
        catalogue["RecursiveAttention"] = module.RecursiveAttention
    (recipe,) = eval(f"[{added['densevl/recipes/catalogue/last_block.py']}]", catalogue)
    exec(added["tests/recipes/oracle_clip.py"], oracles := {**vars(oracle_clip)})
    cases = eval(f"{{{added['tests/recipes/test_parity.py']}}}", {"oracle_clip": types.SimpleNamespace(**oracles)})
    assert list(cases) == [recipe.name]
    pixels = torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(1))
    want = cases[recipe.name](golden_clip._model.state_dict(), pixels)
    got = golden_clip.encode_dense(pixels[None], recipe).features[0].flatten(1).T.double()
    torch.testing.assert_close(got, want[-len(got) :], atol=2e-5, rtol=0)


@dataclass(frozen=True, repr=False)
class OneImage(Attention):
    """Values of the first image alone, which would be broadcast to all."""

    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        return v[:1]


@dataclass(frozen=True, repr=False)
class Narrow(Step):
    def apply(self, batch: Batch, x_BND: torch.Tensor, cls_B1D: torch.Tensor, grid: Grid) -> torch.Tensor:
        return x_BND[:, :1]


@dataclass(frozen=True, repr=False)
class NoList(Addition):
    after_norm = False

    def tokens(self, run: Pass, through):
        return run.x_BND


@dataclass(frozen=True, repr=False)
class NoFeatures(Readout):
    def read(self, batch: Batch, outcome, embed):
        return embed(outcome.y_BND)


@dataclass(frozen=True, repr=False)
class Alone(Spread):
    def spread(self, scores_NT, features_NP, places_N2):
        return scores_NT


class NoDataclass(Attention):
    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        return v


KEYS = SelfAttention("kk")


@pytest.mark.parametrize(
    ("slots", "reason"),
    [
        ({"attention": OneImage()}, r"OneImage\(\) gives \(1, 2"),
        ({"attention": 0.5 * OneImage() + 0.5 * KEYS}, r"OneImage\(\) gives"),
        ({"attention": OneImage(), "blocks": SecondStream(2)}, r"OneImage\(\) gives"),
        ({"attention": KEYS, "residual": False, "ffn": False, "after": (Narrow(),)}, r"Narrow\(\) gives"),
        ({"attention": KEYS, "adds": (NoList(),)}, r"NoList\(\) gives a Tensor; it must give a list"),
        ({"readout": NoFeatures()}, "must give DenseFeatures"),
        ({"spread": Alone()}, "let the spread hold a Proxy"),
        ({"attention": NoDataclass()}, "put @dataclass"),
    ],
)
def test_a_part_that_gives_something_else_is_named(tiny, slots, reason) -> None:
    with pytest.raises(RecipeError, match=reason):
        tiny.encode_dense(torch.randn(2, 3, 32, 48), Recipe("wrong", **slots))
