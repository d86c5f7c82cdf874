"""Every setting reaches its task and is refused by others; the tasks are one table and one form."""

from __future__ import annotations

from dataclasses import fields

import pytest

from densevl.evaluation import BENCHMARKS, EvaluationError, Experiment, check, task_of
from densevl.evaluation.benchmarks.base import TASKS as NAMES
from densevl.evaluation.benchmarks.base import Benchmark
from densevl.evaluation.tasks.table import TASKS
from tests.evaluation.region_miniatures import make_instances, make_panoptic

OTHER = {  # a value that each field does not have when nothing is given
    "variant": "keep-ignore",
    "ignore": (11,),
    "label_map": {"7": "road"},
    "reduce_zero_label": True,
    "exif": "stored",
    "recipe": "naclip",
    "sam": "mini-sam",
    "views": "flip",
    "refine": "pamr",
    "bank": ("scenes.bank",),
    "bank_share": 0.3,
    "neighbours": 5,
    "templates": "drawing",
    "text": {"template_weights": "image"},
    "presence": 0.5,
    "compat": True,
    "proxy_scope": "window",
    "protocol": {"crop": 96},
    "strings": "sclip@1",
    "background": "none",
    "min_share": 0.1,
    "paper": True,
    "measures": ("boundary",),
    "boundary_ratio": 0.1,
    "proposals": "mini-sam",
    "operator": "pool",
    "resolve": {"threshold": 0.5},
    "scoring": "dense",
    "shots": 1,
    "options": {"windows": "shared"},
    "clip_share": "odise",
    "operator_weights": "adapter.pth",
    "prefilter": 5,
    "prefilter_model": "mini",
    "instance_threshold": 0.3,
    "decoder": "masks.npz",
    "upsampler": "anyup.pth",
}
DATASET = {"semantic": "voc21", "instance": "lvis", "panoptic": "coco", "anomaly": "visa"}


def test_every_field_of_some_tasks_is_tried() -> None:
    assert set(OTHER) == {entry.name for entry in fields(Experiment) if "tasks" in entry.metadata}
    assert set(TASKS) == set(DATASET) == set(NAMES)


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("task", NAMES)
def test_a_setting_goes_with_its_tasks_and_is_refused_by_others(name, task) -> None:
    own = next(entry for entry in fields(Experiment) if entry.name == name).metadata["tasks"]
    if task in own:
        assert getattr(Experiment(DATASET[task], task=task, **{name: OTHER[name]}), name)
        return
    with pytest.raises(EvaluationError, match=f"^{name} goes with task .*, not with task {task}; leave it out$"):
        Experiment(DATASET[task], task=task, **{name: OTHER[name]})


@pytest.mark.parametrize("key", BENCHMARKS)
def test_the_table_is_of_one_form(key, tmp_path) -> None:
    own = BENCHMARKS[key]
    assert isinstance(own, Benchmark)
    assert (own.name, own.task) == key
    assert own.files
    assert own.marks
    assert not check(own.name, tmp_path, task=own.task).root


@pytest.mark.parametrize(("name", "first"), [("voc21", "semantic"), ("lvis", "instance"), ("mvtec", "anomaly")])
def test_the_first_task_of_a_benchmark_is_the_usual_one(name, first) -> None:
    assert Experiment(name).task == first


@pytest.mark.parametrize("task", ["instance", "panoptic"])
@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ({"views": "flip"}, "views"),
        ({"presence": 0.2}, "presence"),
        ({"text": {"template_weights": "image"}}, "text"),
        ({"precision": "bfloat16"}, "precision"),
        ({"proxy_scope": "window", "proxy": "mini-sam", "recipe": "proxyclip"}, "proxy_scope"),
        ({"compat": True}, "compat"),
        ({"templates": "drawing"}, "templates"),
    ],
)
def test_what_a_segmenter_takes_reaches_regions(task, asked, used, tmp_path) -> None:
    make_instances("folder", tmp_path)
    make_panoptic("folder", tmp_path)
    plain = {"dataset": "folder", "root": str(tmp_path), "task": task, "model": "mini", "proposals": "truth"}
    facts = [task_of(Experiment(**plain, **more)).predictor().facts()[used] for more in ({}, asked)]
    assert facts[0] != facts[1]
