"""Models beside each other on a labelled folder: their mIoU is that of an evaluation, and the fast one is named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from densevl.benchmarking.held import held_mib
from densevl.cli import app
from densevl.errors import DensevlError, ModelError, PrecisionError
from densevl.evaluation import Experiment, run
from densevl.evaluation.quality import at_hand, measure, recommended

SCENES = Path(__file__).parents[2] / "demo" / "scenes"


def row(model: str, miou: float, milliseconds: float) -> dict[str, object]:
    return {"model": model, "precision": "float32", "mIoU": miou, "milliseconds": milliseconds}


@pytest.mark.parametrize(
    ("rows", "taken", "said"),
    [
        (
            [("a", 0.50, 90), ("b", 0.49, 30), ("c", 0.40, 10)],
            "b",
            "within 5% of a in float32's 50.0, 3.0 times as fast",
        ),
        ([("a", 0.50, 30), ("b", 0.49, 90)], "a", "the best here, and none within 5% of it is faster"),
        ([("a", math.nan, 1), ("b", 0.0, 1), ("c", 0.01, 99)], "c", "the best here"),
        ([("a", 0.50, 90), ("b", 0.475, 30)], "b", "3.0 times as fast"),
    ],
    ids=["a fast one that is good", "the best is the fastest", "nothing found by others", "just good enough"],
)
def test_the_fast_one_of_the_good_is_recommended(rows, taken, said) -> None:
    found, why = recommended([row(*each) for each in rows])
    assert found["model"] == taken
    assert said in why


def test_where_nothing_is_found_none_is_recommended() -> None:
    with pytest.raises(ModelError, match="none can be recommended"):
        recommended([row("a", math.nan, 1), row("b", 0.0, 1)])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of which the left half is a penguin and the right half a pizza, it is said."""
    root = tmp_path_factory.mktemp("labelled")
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    for name in ("snow", "wood"):
        with Image.open(SCENES / f"{name}.png") as scene:
            scene.convert("RGB").resize((96, 96)).save(root / "images" / f"{name}.png")
        labels = np.zeros((96, 96), np.uint8)
        labels[:, 48:] = 1
        Image.fromarray(labels).save(root / "labels" / f"{name}.png")
    (root / "names.txt").write_text("penguin\npizza\n")
    return root


def test_each_row_is_the_evaluation_of_its_model(labelled: Path) -> None:
    rows = list(measure(str(labelled), ["mini"], ["float32", "int8"], rounds=1))
    assert [(each["model"], each["precision"]) for each in rows] == [("mini", "float32"), ("mini", "int8")]
    for each in rows:
        alone = run(Experiment("folder", str(labelled), model="mini", precision=each["precision"], measures=("iou",)))
        assert each["mIoU"] == alone.summary["mIoU"]
        assert each["images"] == 2
        assert each["milliseconds"] > 0
        assert each["model_mib"] > 20  # mini's table of words alone


def test_memory_that_is_held_twice_or_by_a_view_counts_once() -> None:
    rows, shared = torch.zeros(2**18), np.zeros(2**17)
    layer = torch.nn.Linear(2**9, 2**9, bias=False)
    layer.again = layer.weight
    holder = {"layer": layer, "views": [rows[:5], rows.reshape(2, -1)], "arrays": (shared, [shared])}
    assert held_mib(holder, holder) == 3
    assert held_mib(test_models_at_hand_have_what_ships_and_no_proposer) == 0


def test_a_model_of_float32_only_is_said_and_the_others_are_measured(labelled: Path, monkeypatch) -> None:
    def refused(*given: object, **named: object) -> None:
        raise PrecisionError("model 'x' runs in float32 only")

    monkeypatch.setattr("densevl.evaluation.tasks.semantic.SemanticTask.predictor", refused)
    said: list[str] = []
    assert not list(measure(str(labelled), ["mini"], ["int8"], tell=said.append))
    assert said == ["not measured in int8: model 'x' runs in float32 only"]


def test_the_command_prints_rows_and_what_it_recommends(labelled: Path) -> None:
    words = ["bench", "--quality", str(labelled), "--models", "mini", "--precisions", "float32", "--rounds", "1"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    first, last = (json.loads(line) for line in done.stdout.splitlines())
    assert first["model"] == last["recommended"] == "mini"
    assert "the best here" in last["why"]


def test_models_at_hand_have_what_ships_and_no_proposer() -> None:
    assert "mini" in at_hand()
    assert "mini-sam" not in at_hand()


@pytest.mark.parametrize(
    "words",
    [["--models", "mini"], ["--quality", ".", "--models", " , "], ["--quality", "{empty}", "--models", "mini"]],
    ids=["models alone", "no models", "no labelled folder"],
)
def test_what_cannot_be_measured_is_one_line(words: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", *(word.format(empty=tmp_path) for word in words)])
    assert done.exit_code == 2, done.output
    assert len(done.stderr.strip().splitlines()) == 1
    with pytest.raises(DensevlError):
        next(measure(str(tmp_path), ["mini"]))
