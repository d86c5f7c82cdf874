"""The recipes page follows the catalogue and runs as it stands; the benchmark measures, marks and refuses."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from conftest import DATA
from densevl import recipes
from densevl.backbones import mini
from densevl.proposals.sam import mini_sam
from densevl.recipes.catalogue.published import BARE
from tools.recipes.page import MEASURED, PAGE, call, page
from tools.recipes.table import markdown

TEXT = PAGE.read_text(encoding="utf-8")
NAMESPACE = vars(recipes)


def test_the_page_is_what_the_generator_writes() -> None:
    """After a change of the catalogue: make docs."""
    assert page(json.loads(MEASURED.read_text(encoding="utf-8"))) == TEXT


def test_every_recipe_was_measured() -> None:
    """Else: python -m tools.recipes.benchmark --json docs/recipes.json --recipes NAME."""
    assert set(json.loads(MEASURED.read_text(encoding="utf-8"))["recipes"]) == set(recipes.names())


@pytest.mark.parametrize("name", recipes.names())
def test_the_python_of_a_section_makes_that_recipe(name) -> None:
    section = TEXT.split(f"\n### {name}\n")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    assert eval(code.group(1), dict(NAMESPACE)) == recipes.get(name)
    assert call(recipes.get(name)) == code.group(1).rstrip()


def test_examples_parse_and_name_what_exists() -> None:
    head = TEXT.split("## Overview")[0]
    for block in re.findall(r"```python\n(.*?)```", head, re.DOTALL):
        ast.parse(block)
    for name in re.findall(r'get\("(\w+)"\)|--recipe (\w+)\b(?!:)', head):
        recipes.get("".join(name))


def test_every_field_is_explained() -> None:
    explained = (PAGE.parent / "how-it-works.md").read_text(encoding="utf-8")
    for field in fields(recipes.Recipe):
        assert f"`{field.name}`" in explained or field.name in ("name", "source", "note"), field.name


def test_figures_are_of_the_shipped_weights() -> None:
    """Else measure again: python -m tools.recipes.benchmark --json docs/recipes.json."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    assert measured["mini"] == mini.SHA256
    assert {row.get("mini-sam", mini_sam.SHA256) for row in measured["recipes"].values()} == {mini_sam.SHA256}


def test_links_of_the_overview_have_sections() -> None:
    for anchor in re.findall(r"\]\(#(\w+)\)", TEXT):
        assert f"\n### {anchor}\n" in TEXT


def _added(example: int, file: str) -> str:
    """The lines that one of the page's two examples adds to a file."""
    diff = re.findall(r"```diff\n(.*?)```", TEXT, re.DOTALL)[example]
    hunks = [hunk for hunk in re.split(r"^--- .*\n", diff, flags=re.MULTILINE) if hunk.startswith(f"+++ {file}\n")]
    return "".join(line[1:] + "\n" for hunk in hunks for line in hunk.split("\n")[1:] if line)


@pytest.mark.parametrize("example", [0, 1], ids=["an entry", "an entry and a part"])
def test_the_examples_of_adding_a_recipe_work(golden_clip, monkeypatch, example) -> None:
    """Their entries, run by the engine, equal their parity rows."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "recipes")
    oracle_clip = importlib.import_module("oracle_clip")
    part = ModuleType("added_part")
    monkeypatch.setitem(sys.modules, "added_part", part)
    exec(_added(example, "densevl/recipes/parts/recursive.py"), vars(part))
    names = {**NAMESPACE, **vars(part), "BARE": BARE}
    (entry,) = eval(f"({_added(example, 'densevl/recipes/catalogue/last_block.py')})", names)
    assert entry.name not in recipes.names(), "it is in the catalogue now; show another"
    reading = dict(vars(oracle_clip))
    exec(_added(example, "tests/recipes/oracle_clip.py"), reading)
    row = _added(example, "tests/recipes/test_parity.py")
    parity = eval(f"{{{row}}}", {"oracle_clip": SimpleNamespace(**reading)})[entry.name]
    rgb = np.asarray(Image.open(DATA / "golden" / "coffee_336x448.png")).astype("float32")
    pixels = torch.from_numpy(rgb / 127.5 - 1).permute(2, 0, 1)
    got = golden_clip.encode_dense(pixels[None], entry).features[0].flatten(1).T
    want = parity(golden_clip._model.state_dict(), pixels)[-len(got) :]
    torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=0)


def test_the_table_marks_what_beats_the_baseline_and_says_why_not() -> None:
    row = {"offset": 0.0, "large": 20.0, "ms": 3.4}
    measured = {
        "maskclip": {**row, "miou": 24.0},
        "vanilla": {**row, "miou": 6.0},
        "proxyclip": {**row, "miou": 28.04, "truth": 63.57},
        "trident": {"refused": "it borrows"},
    }
    lines = markdown({"recipes": measured}).splitlines()[2:]
    assert lines == [
        "| `vanilla` | 6.0 |  | 3 | 20.0 |  |",
        "| `maskclip` | 24.0 |  | 3 | 20.0 |  |",
        "| `proxyclip` | 28.0 | yes | 3 | 20.0 | 63.6 |",
        "| `trident` | does not run: it borrows | | | | |",
    ]


@pytest.fixture
def bench(monkeypatch):
    """Two scenes of painted squares a set, the shipped model, and proxies and segments from the truth."""
    pytest.importorskip("cv2", reason="OpenCV cannot be imported (apt-get install libgl1)", exc_type=ImportError)
    from densevl.backbones.mini import Mini
    from tools.mini.evaluate import Judge
    from tools.recipes.benchmark import Bench
    from tools.recipes.borrowed import Truth
    from tools.render.scenes import Scene

    def scenes(judge: Judge, name: str) -> list[Scene]:
        side, found = 96 * (1 + name.startswith("2x")), []
        for number in range(2):
            image = np.full((side, side, 3), 128, np.uint8)
            objects = np.full((side, side), -1, np.int16)
            area = slice(8 + 8 * number, 56 + 8 * number)
            image[area, area], objects[area, area] = (255, 60, 60), number
            found.append(Scene(image, objects, np.where(objects < 0, -1, 0).astype(np.int16), (number,), 0, ""))
        return found

    monkeypatch.setattr(Judge, "scenes", scenes)
    return Bench(Mini(), 2, lender=Truth())


@pytest.mark.parametrize("name", ["maskclip_value", "cliper", "lposs", "corrclip", "trident", "textregion", "cass"])
def test_every_kind_of_recipe_is_measured(bench, name) -> None:
    row = bench.measure(name)
    borrowed = {"truth", "mini-sam"} if name not in ("maskclip_value", "cliper") else set()
    assert set(row) == {"offset", "miou", "large", "ms"} | borrowed
    assert 0 <= row["miou"] <= 100
    assert row["ms"] > 0


def test_a_recipe_that_cannot_run_says_why(bench) -> None:
    class Nothing:
        def hints(self, recipe, scenes):
            return recipes.Hints()

    bench.lender = Nothing()
    assert "reads another model's patch features" in bench.measure("proxyclip")["refused"]


def test_regions_are_proposed_once_a_scene_and_given_as_the_recipe_reads_them(bench) -> None:
    from tools.recipes.borrowed import MiniSam

    asked = []

    def propose(image: np.ndarray) -> np.ndarray:
        asked.append(1)
        return (np.arange(image.shape[1]) // 40 + np.zeros((len(image), 1))).astype(np.int64) + (len(asked) == 2)

    proxy = SimpleNamespace(from_clip=None)
    lender, scenes = MiniSam(proxy, propose), bench.sets["twemoji"]
    given = lender.hints(recipes.get("corrclip"), scenes)
    assert given.proxy is proxy
    assert given.regions.shape == (2, 96, 96)
    masks = lender.hints(recipes.get("textregion"), scenes).masks
    assert masks.shape == (2, 3, 96, 96)
    assert masks.flatten(2).any(dim=2).tolist() == [[True, True, False], [True, True, True]]
    assert not lender.hints(recipes.get("sclip"), scenes).given()
    assert len(asked) == 2


def test_true_features_tell_objects_apart(bench) -> None:
    from tools.recipes.borrowed import true_features

    scene = bench.sets["twemoji"][0]
    cosines = F.normalize(true_features(scene)[:, [4, 5, 12], [4, 5, 12]], dim=0)
    same, other = (cosines[:, 0] @ cosines[:, n] for n in (1, 2))
    assert same > 0.99
    assert other < 0.5
