"""Configs: three formats say the same, bases are merged, the clone's load. Hostile ones are in `attacks/`."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from densevl.evaluation import EvaluationError, Experiment
from densevl.evaluation.benchmarks.class_lists import class_list, listed
from densevl.evaluation.config import load_experiment, parse_change

CONFIGS = Path(__file__).parents[2] / "configs"
needs_mmengine = pytest.mark.skipif(find_spec("mmengine") is None, reason="mmengine is not installed")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("limit=3", {"limit": 3}),
        ("min_share=1e-3", {"min_share": 0.001}),
        ("paper=true", {"paper": True}),
        ("root=", {"root": None}),
        ("recipe=no", {"recipe": "no"}),  # not YAML 1.1's "false"
        ("seed=010", {"seed": 10}),
        ("background=voc, 0.1", {"background": "voc, 0.1"}),
        ("templates=a photo of a {}", {"templates": "a photo of a {}"}),
        ("measures=[iou, boundary]", {"measures": ["iou", "boundary"]}),
        ("protocol.crop=null", {"protocol": {"crop": None}}),
        ("root=C:\\data=x", {"root": "C:\\data=x"}),
    ],
)
def test_a_change_is_read_as_yaml(text, want) -> None:
    assert parse_change(text) == want


@pytest.mark.parametrize("ending", ["yaml", "yml", "json", "toml"])
def test_the_three_formats_say_the_same(ending, tmp_path) -> None:
    text = {"json": '{"dataset": "voc21", "limit": 3, "protocol": {"crop": 96}, "measures": ["iou"]}'}
    text["toml"] = 'dataset = "voc21"\nlimit = 3\nmeasures = ["iou"]\n[protocol]\ncrop = 96\n'
    path = tmp_path / f"x.{ending}"
    path.write_text(text.get(ending, "dataset: voc21\nlimit: 3\nprotocol: {crop: 96}\nmeasures: [iou]\n"))
    assert load_experiment(path) == Experiment("voc21", limit=3, protocol={"crop": 96}, measures=("iou",))


def test_bases_are_merged_the_last_wins_and_changes_are_over_all(tmp_path) -> None:
    files = {
        "configs/a.yaml": "dataset: voc21\nprotocol: {crop: 1, stride: 1}\nseed: 1",
        "configs/b.toml": "seed = 2\nlimit = 2",
        "configs/deep/c.json": json.dumps({"_base_": ["../a.yaml", "../b.toml"], "protocol": {"stride": 2}}),
        "configs/deep/d.yaml": "_base_: [c.json, ../a.yaml]\nrecipe: sclip",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    found = load_experiment(tmp_path / "configs/deep/d.yaml", {"protocol": {"blend": "patch"}, "limit": None})
    own = {"protocol": {"crop": 1, "stride": 1, "blend": "patch"}, "seed": 1, "limit": None, "recipe": "sclip"}
    assert found == Experiment("voc21", **own)
    (tmp_path / "configs").rename(tmp_path / "others")  # without that name, a config's own folder is the limit
    with pytest.raises(EvaluationError, match="outside the folder"):
        load_experiment(tmp_path / "others/deep/d.yaml")


@needs_mmengine
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.[!m]*")), ids=lambda path: path.name)
def test_every_config_of_the_clone_loads(path) -> None:
    experiment = load_experiment(path, trust=path.suffix == ".py")
    experiment.resolved()
    if experiment.paper:
        assert experiment.published
    if experiment.dataset in listed():
        class_list(experiment.dataset).labels(experiment.resolved().strings)


def test_there_are_few_configs() -> None:
    assert len(os.listdir(CONFIGS)) <= 15
