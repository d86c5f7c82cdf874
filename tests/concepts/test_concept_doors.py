"""Concept models on the command line and in evaluations, and the doors that are closed to them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import densevl
from concept_folders import FOLDERS
from densevl.cli import app
from densevl.errors import ModelError
from densevl.evaluation import Experiment, evaluate
from densevl.images import read_image
from densevl.proposals import Proposals
from densevl.proposals.concepts import ConceptProposer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return FOLDERS["clipseg"](tmp_path_factory.mktemp("clipseg"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "x.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def run(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.mark.parametrize("more", [(), ("--background", "0.4", "--compat", "--instance-threshold", "0")])
def test_segment_takes_one_as_its_model(folder, photo, tmp_path, more) -> None:
    done = run("segment", photo, "--labels", "cat,dog", "--model", folder, "--out", tmp_path / "out", *more)
    assert done.exit_code == 0, done.output
    meta = json.loads((tmp_path / "out" / "x.json").read_text())["meta"]
    assert meta["kind"] == "clipseg"
    assert meta["compat"] is bool(more)


@pytest.mark.parametrize("more", [("photo",), ("photo", "other")], ids=["one photo", "a folder"])
@pytest.mark.parametrize("recipe", ["--recipe textregion", "--refine vote"])
def test_a_photo_without_what_is_asked_for_is_nothing_and_says_so(folder, tmp_path, monkeypatch, more, recipe) -> None:
    monkeypatch.setattr(ConceptProposer, "__call__", lambda self, image: Proposals.empty(read_image(image).shape[:2]))
    pixels = np.random.default_rng(2).integers(0, 256, (40, 60, 3), np.uint8)
    (tmp_path / "in").mkdir()
    for name in more:
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    asked = (tmp_path / "in", "--model", "mini", "--labels", "cat,dog", *recipe.split())
    done = run("segment", *asked, "--proposals", f"concepts:{folder}", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.output.count("no region was found") == 1
    for name in more:
        labels = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert (labels == 255).all() or "vote" in recipe


@pytest.mark.parametrize(
    "more",
    [
        ("--recipe", "sclip"), ("--templates", "openai"), ("--refine", "pamr"), ("--views", "flip"), ("--crop", "64"),
        ("--proxy", "mini-sam"), ("--presence", "0.5"), ("--proposals", "grid"), ("--precision", "int8"),
    ],
    ids=lambda more: more[0],
)  # fmt: skip
def test_options_of_other_models_are_refused(folder, photo, tmp_path, more) -> None:
    done = run("segment", photo, "--labels", "cat", "--model", folder, "--out", tmp_path / "out", *more)
    assert done.exit_code == 2
    assert "a concept model judges each word on its own" in done.output


@pytest.mark.parametrize("option", ["--instance-threshold 0.3", "--prefilter 3"])
def test_options_of_concept_models_are_refused_by_others(photo, tmp_path, option) -> None:
    done = run("segment", photo, "--labels", "cat", "--model", "mini", *option.split(), "--out", tmp_path)
    assert done.exit_code == 2
    assert "is for concept models, such as facebook/sam3, and 'mini' is not one" in done.output


def test_segment_asks_for_the_nearest_classes_alone(folder, photo, tmp_path) -> None:
    done = run("segment", photo, "--labels", "cat,dog,car", "--model", folder, "--prefilter", "2", "--prefilter-model",
               "mini", "--out", tmp_path)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert len(json.loads((tmp_path / "x.json").read_text())["meta"]["unasked"]) == 1


def test_a_model_of_a_prefilter_without_one_is_a_mistake(folder, photo, tmp_path) -> None:
    done = run("segment", photo, "--labels", "cat", "--model", folder, "--prefilter-model", "mini", "--out", tmp_path)
    assert done.exit_code == 2
    assert "give prefilter too" in done.output


def test_regions_are_named_in_what_it_proposes(folder, photo, tmp_path) -> None:
    done = run("regions", photo, "--labels", "cat,dog", "--model", "mini", "--proposals", f"concepts:{folder}", "--out",
               tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    nouns = run("regions", photo, "--model", "mini", "--proposals", f"concepts:{folder}", "--out", tmp_path / "other")
    assert nouns.exit_code == 2
    assert "give words" in nouns.output


def test_a_recipe_pools_over_what_it_proposes(folder, photo, tmp_path) -> None:
    done = run("segment", photo, "--labels", "cat,dog", "--model", "mini", "--refine", "vote", "--proposals",
               f"concepts:{folder}", "--out", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "open_door",
    [
        lambda model: densevl.Segmenter(model),
        lambda model: densevl.FewShot(model),
        lambda model: densevl.AnomalyDetector(model, item="nut"),
        lambda model: densevl.RegionClassifier(model),
        lambda model: densevl.BlockSegmenter(model),
        lambda model: densevl.load_backbone(model),
    ],
    ids=["segmenter", "fewshot", "anomaly", "regions", "blocks", "backbone"],
)
@pytest.mark.parametrize("form", ["{}", "local-dir:{}"])
def test_other_doors_are_closed_in_one_line(folder, open_door, form) -> None:
    with pytest.raises(ModelError, match="is a concept model") as raised:
        open_door(form.format(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "args",
    [
        ("serve", "--port", "0"), ("export", "model", "{out}/x.onnx"), ("search", "build", "{photo}"),
        ("video", "{photo}", "--labels", "cat"), ("anomaly", "score", "{photo}", "--item", "nut"),
        ("segment", "{photo}", "--labels", "cat", "--geotiff"),
    ],
    ids=["serve", "export", "search", "video", "anomaly", "geotiff"],
)  # fmt: skip
def test_other_commands_are_closed_in_one_line(folder, photo, tmp_path, args) -> None:
    filled = [arg.format(photo=photo, out=tmp_path) for arg in args]
    done = run(*filled, "--model", folder)
    assert done.exit_code == 2, done.output
    assert done.output.count("error:") == 1


def test_an_evaluation_measures_it(folder, tmp_path) -> None:
    data = tmp_path / "data"
    for name in ("images", "labels"):
        (data / name).mkdir(parents=True)
    for number in range(2):
        rgb = np.random.default_rng(number).integers(0, 256, (24, 36, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(data / "images" / f"{number}.png")
        Image.fromarray((rgb[..., 0] > 128).astype(np.uint8)).save(data / "labels" / f"{number}.png")
    (data / "dataset.json").write_text(json.dumps({"classes": ["cat", "dog"]}))
    own = {"instance_threshold": 0.3, "prefilter": 1, "prefilter_model": "mini"}
    asked = Experiment(dataset="folder", root=str(data), model=str(folder), **own)
    outcome, _ = evaluate(asked, str(tmp_path / "out"), quiet=True)
    assert 0 <= outcome.summary["mIoU"] <= 1
    assert outcome.used["kind"] == "clipseg"
    assert outcome.used["prefilter"] == 1
