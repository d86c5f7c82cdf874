"""Experiments: the papers' protocols, configs by inheritance, and the whole way with the shipped model."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import close
from densevl import recipes
from densevl.evaluation import EvaluationError, Experiment, open_dataset, papers
from densevl.evaluation.benchmarks.class_lists import class_list
from densevl.evaluation.config import load_experiment
from densevl.vocabulary import Background
from tools.test import main

CONFIGS = Path(__file__).parents[2] / "configs"
needs_mmengine = pytest.mark.skipif(find_spec("mmengine") is None, reason="mmengine is not installed")
PUBLISHED = sorted(path for path in CONFIGS.rglob("*_vit-*_*.py") if "_base_" not in path.parts)
SHORT = {"ViT-B-16/openai": "vit-b16", "ViT-L-14/openai": "vit-l14", "ViT-H-14/laion2b_s32b_b79k": "vit-h14"}


@pytest.mark.parametrize("recipe", papers.known())
@pytest.mark.parametrize("benchmark", ["voc21", "context60", "coco-object", "voc20", "ade150", "cityscapes"])
def test_a_protocol_names_strings_and_a_background_that_exist(recipe, benchmark) -> None:
    found = papers.protocol(recipe, benchmark)
    classes = class_list(benchmark)
    classes.labels(found["strings"])
    policy = Background.parse(found["background"])
    assert bool(policy.words) == classes.background
    assert papers.published(recipe, benchmark) > 10


@pytest.mark.parametrize(
    ("recipe", "benchmark", "field", "value"),
    [
        ("sclip", "voc21", "logit_scale", 65.0),
        ("sclip", "voc21", "min_share", 0.1),
        ("sclip", "coco-stuff", "short_side", 448),
        ("sclip", "cityscapes", "short_side", 560),
        ("naclip", "voc20", "crop", None),
        ("clearclip", "cityscapes", "stride", 224),
        ("clearclip", "voc21", "background", "context@1, 0.5"),
        ("proxyclip", "coco-object", "background", "coco-object@1, 0.25"),
        ("sc_clip", "coco-object", "logit_scale", 55.0),
        ("sclip", "ade150", "background", "none"),
        ("sfp", "ade150", "short_side", 384),
        ("resclip", "coco-stuff", "short_side", 336),
        ("resclip", "voc21", "crop", None),
    ],
)
def test_protocols_of_the_papers(recipe, benchmark, field, value) -> None:
    assert papers.protocol(recipe, benchmark)[field] == value


def test_a_published_figure_belongs_to_the_papers_model_and_protocol_only() -> None:
    plain = Experiment("voc21", model=papers.MODEL, recipe="sclip", paper=True)
    assert plain.published == 59.1
    for change in (
        {"model": "mini"},
        {"limit": 5},
        {"protocol": {"stride": 56}},
        {"background": "none"},
        {"paper": False},
    ):
        changed = Experiment("voc21", **{"model": papers.MODEL, "recipe": "sclip", "paper": True, **change})
        assert changed.published is None, change
    assert plain.resolved().protocol["crop"] == 224
    with pytest.raises(EvaluationError, match="not known completely"):
        Experiment("voc21", recipe="vanilla", paper=True).resolved()


def test_bad_experiments_are_named() -> None:
    with pytest.raises(EvaluationError, match=r"no field 'recipee'.*closest: recipe"):
        Experiment.parse({"dataset": "voc21", "recipee": "sclip"})
    with pytest.raises(EvaluationError, match="needs a dataset"):
        Experiment.parse({"recipe": "sclip"})
    with pytest.raises(EvaluationError, match="no measure 'iuo'"):
        Experiment("voc21", measures=("iuo",))


@pytest.fixture
def scenes(tmp_path) -> Path:
    """Three drawings with labels of left and right half."""
    root = tmp_path / "data"
    drawings = sorted((Path(__file__).parents[2] / "demo/scenes").glob("*.png"))[:3]
    for number, path in enumerate(drawings):
        for kind in ("images", "labels"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        picture = Image.open(path).convert("RGB").resize((96, 96))
        picture.save(root / f"images/{number}.png")
        labels = np.zeros((96, 96), np.uint8)
        labels[:, 48:] = 1 + number % 2
        Image.fromarray(labels).save(root / f"labels/{number}.png")
    (root / "names.txt").write_text("background\npenguin\npizza\n")
    return root


def test_the_area_threshold_gives_a_rare_class_to_the_next_best(scenes) -> None:
    plain = Experiment("folder", root=str(scenes), model="mini", recipe="maskclip_value")
    dataset = open_dataset("folder", scenes)
    predictor = plain.predictor(dataset)
    before = predictor(dataset[0].image)
    predictor.min_share = 0.9
    after = predictor(dataset[0].image)
    assert before.labels.min() >= 0
    assert set(np.unique(after.labels)) <= set(np.unique(before.labels)) | {0}
    predictor.min_share = 1e-9
    same = predictor(dataset[0].image)
    np.testing.assert_array_equal(same.labels, before.labels)
    close(same.confidence, before.confidence)


@needs_mmengine
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_every_config_of_a_published_row_has_its_figure(path) -> None:
    experiment = load_experiment(path)
    refined = f"_{experiment.refine}" if experiment.refine else ""
    assert path.stem == f"{experiment.recipe}{refined}_{SHORT[experiment.model]}_{experiment.dataset}"
    known = experiment.dataset in {"ade847", "pc459"} or experiment.published is not None
    assert known
    experiment.resolved()


def test_there_are_configs() -> None:
    assert len(PUBLISHED) == 8 * len(papers.rows()) + 2  # ProxyCLIP has two more benchmarks


def test_resclip_has_its_own_shares_for_each_benchmark() -> None:
    one, other = (papers.recipe("resclip", name) for name in ("voc21", "cityscapes"))
    assert (one.attention.feedback.threshold, other.attention.feedback.share) == (0.5, 0.6)
    assert [weight for weight, _ in other.attention.first.terms] == [2 * 0.8, 2 * 0.2]
    assert papers.recipe("sclip", "voc21") == recipes.get("sclip")


@pytest.mark.parametrize("change", [{"proxy": "mini-sam"}, {"precision": "int8"}, {"refine": "lposs+"}])
def test_no_published_figure_where_something_else_is_borrowed(change) -> None:
    plain = {"model": papers.MODEL, "recipe": "proxyclip", "paper": True}
    assert Experiment("coco-object", **plain).published == 37.5
    assert Experiment("coco-object", **{**plain, **change}).published is None
    large = Experiment("coco-object", **{**plain, "model": "ViT-L-14/openai"})
    assert large.published == 39.2


@needs_mmengine
def test_a_config_is_evaluated_from_the_command_line(scenes, tmp_path, capsys) -> None:
    path = CONFIGS / "rendered/maskclip_value_mini_rendered.py"
    arguments = [str(path), "--work-dir", str(tmp_path / "out"), "--dump", "--set", "dataset=folder", f"root={scenes}"]
    assert main([*arguments, "limit=2"]) == 0
    assert "mIoU" in capsys.readouterr().out
    facts = json.loads((tmp_path / "out/results.json").read_text())
    assert facts["used"]["recipe"] == "maskclip_value"
    assert facts["used"]["protocol"]["crop"] == 96
    assert facts["run"]["images"] == 2
    assert len(list((tmp_path / "out/predictions").rglob("*.png"))) == 2
    assert main([*arguments, "limit=3"]) == 2  # the work folder holds another experiment
    assert "another experiment" in capsys.readouterr().err
    assert main([*arguments, "limit=3", "--fresh"]) == 0


@needs_mmengine
def test_torchrun_and_one_process_write_the_same_report(scenes, tmp_path) -> None:
    config = str(CONFIGS / "rendered/maskclip_value_mini_rendered.py")
    common = ["--threads", "1", "--set", "dataset=folder", f"root={scenes}"]
    assert main([config, "--work-dir", str(tmp_path / "one"), *common]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    tool = [str(CONFIGS.parent / "tools/test.py"), config, "--work-dir", str(tmp_path / "two")]
    subprocess.run([*torchrun, *tool, "--launcher", "pytorch", *common], check=True, capture_output=True, timeout=250)
    facts = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert [own.pop("run")["images"] for own in facts] == [3, 3]
    assert facts[0] == facts[1]
    assert len(list((tmp_path / "two/state").glob("*.npz"))) == 2
    tables = [(tmp_path / name / "confusion.csv").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]


@needs_mmengine
def test_a_config_from_elsewhere_is_announced_and_faults_are_one_line(tmp_path, caplog) -> None:
    path = tmp_path / "mine.py"
    path.write_text('dataset = "voc21"\nrecipe = "sclip"\n')
    with caplog.at_level(logging.WARNING):
        assert load_experiment(path, {"limit": 3}).limit == 3
    assert "executed as a Python program" in caplog.text
    caplog.clear()
    load_experiment(PUBLISHED[0])
    assert "executed" not in caplog.text
    path.write_text("dataset = 1 / 0\n")
    with pytest.raises(EvaluationError, match="cannot be read") as caught:
        load_experiment(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(EvaluationError, match="no config"):
        load_experiment(tmp_path / "none.py")
