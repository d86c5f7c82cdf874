"""`densevl anomaly fit` and `score`, as a user runs them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from conftest import TINY, random_clip
from densevl.cli import app

SURFACE = np.random.default_rng(3).integers(90, 130, (40, 40, 3), np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model, sound images, and images to score, one of them cut."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    weights = {key: value.contiguous() for key, value in random_clip().state_dict().items()}
    save_file(weights, tmp_path / "model" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    for name in ("sound/a", "sound/b", "new/good", "new/bad", "new/cut"):
        image = np.clip(SURFACE.astype(int) + np.random.randint(-9, 9, SURFACE.shape), 0, 255).astype(np.uint8)
        if name == "new/bad":
            image[4:12, 20:28] = 250
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    cut = tmp_path / "new" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:200])
    return tmp_path


def call(*words: str):
    return CliRunner().invoke(app, ["anomaly", *words])


def test_a_fitted_detector_scores_a_folder_and_names_the_bad_file(folder) -> None:
    options = ["--scoring", "dino", "--size", "64", "--tile", "40", "--fpr", "0.3"]
    found = call("fit", "sound", "--model", "model", "--out", "det", *options)
    assert found.exit_code == 0, found.output
    assert "threshold" in found.output
    assert (folder / "det.safetensors").exists()
    found = call("score", "new", "--detector", "det", "--out", "out", "--sheet")
    assert found.exit_code == 3
    assert "cut.png" in found.output
    assert "1 of 3 images failed" in found.output
    rows = {row["image"].split("/")[-1]: row for row in csv.DictReader((folder / "out" / "scores.csv").open())}
    assert float(rows["bad.png"]["score"]) > float(rows["good.png"]["score"])
    assert rows["bad.png"]["is_anomalous"] == "true"
    assert json.loads((folder / "out" / "bad.json").read_text())["meta"]["tile"] == 40
    assert {"bad.png", "bad.npy", "errors.jsonl", "contact_sheet.jpg"} <= {p.name for p in (folder / "out").iterdir()}


def test_words_alone_score_without_a_detector(folder) -> None:
    found = call("score", "new/good.png", "--model", "model", "--item", "tile", "--out", "out")
    assert found.exit_code == 0, found.output
    assert json.loads((folder / "out" / "good.json").read_text())["is_anomalous"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "nowhere", "--model", "model"], "nowhere"),
        (["fit", "sound", "--model", "model", "--windows", "exakt"], "closest: exact"),
        (["fit", "sound", "--model", "model", "--tile", "20"], "multiple of the patch size, 8"),
        (["score", "new/good.png", "--detector", "none"], "cannot be read"),
        (["score", "new/good.png", "--model", "model", "--scoring", "dino"], "call fit"),
    ],
)
def test_mistakes_are_one_clear_line(folder, words, message) -> None:
    found = call(*words)
    assert found.exit_code == 2
    lines = [line for line in found.output.splitlines() if line.strip()]
    assert message in " ".join(lines)
    assert sum(line.startswith("error:") for line in lines) == 1
