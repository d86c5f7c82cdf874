"""One table of wrong values for the settings of all four classes: each is one line, before any model is loaded."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from densevl.errors import OptionError
from densevl.pipelines.anomaly.detector import AnomalyDetector
from densevl.pipelines.features.extractor import FeatureExtractor
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.points.labeller import PointLabeller
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.segmenter import Segmenter
from densevl.pipelines.settings import RULES

CLASSES = (Segmenter, RegionClassifier, AnomalyDetector, FewShot)
WRONG = {
    "model": [3, None, ["mini"]],
    "weights": [3, ["x.pt"]],
    "device": ["cud", 3, object()],
    "precision": ["fp8", 8, True],
    "recipe": [5, ["sclip"]],
    "operator": [3, ["pool"]],
    "scoring": [3, None],
    "head": ["lda", 3, None],
    "level": ["pixels", 3, None],
    "compat": ["yes", 1, None],
    "use_cache": [0, None],
    "options": ["alpha", 3, {3: 4}],
    "operator_options": [["crop"]],
    "templates": [3, [3], object()],
    "text": ["descriptors", {"parents": "pixel"}],
    "background": [object(), [3], {"words": 3}, True],
    "presence": ["x", 0, 1.0, float("nan"), True],
    "protocol": [["tiles"], 224, object()],
    "proxy": [3, object()],
    "proxy_scope": ["windows", None, 3],
    "sam": [3, object()],
    "proposals": [3, ["mini-sam"], "minisam"],
    "views": [7, ["flip"], True],
    "refine": [3.5, [3], object()],
    "upsampler": [3, object()],
    "bank": [3, object()],
    "bank_share": ["x", 1.5, -0.1, None],
    "neighbours": [0, 1.5, None],
    "order": ["both", 3],
    "second_look": [3],
    "second_share": ["x", 0, 2, None],
    "second_top": [0, 1.5, None],
    "clip_share": ["fcclip", (0.4,), ("x", 1), 0.4, None],
    "margin": ["x", 1, -0.1, None],
    "item": ["", "  ", 3, None],
    "states": [3, ["damaged"]],
    "size": ["224", 22.4, object()],
    "tile": ["64", 6.4],
    "adapters": [3, object()],
    "guided": [1, 2.5, "x", True],
    "coverage": [0, 2, "x", None],
    "tokens": [0, 1.5, None],
}
CASES = [
    pytest.param(kind, name, value, id=f"{kind.__name__}-{name}-{number}")
    for kind in CLASSES
    for name in inspect.signature(kind).parameters
    for number, value in enumerate(WRONG[name])
]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_a_wrong_value_is_one_line_that_names_the_setting(kind, name, value) -> None:
    with pytest.raises(OptionError, match=name) as caught:
        kind(**{"model": "no such model", name: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("given", [{"operator": "pool"}, {"operator_options": {}}, {"proposals": "grid"}], ids=str)
def test_what_is_for_regions_is_refused_elsewhere(given) -> None:
    with pytest.raises(OptionError, match="for level 'region'"):
        FewShot("mini", **given)


def test_every_setting_has_a_rule() -> None:
    asked = {name for kind in CLASSES for name in inspect.signature(kind).parameters}
    others = {name for kind in (FeatureExtractor, PointLabeller) for name in inspect.signature(kind).parameters}
    assert asked <= set(RULES) <= asked | others


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (((), {"backgrounds": "none"}), "no setting 'backgrounds'"),
        (((), {"deviec": "cpu"}), "closest: device"),
        ((("mini", None, 3, 4), {}), "too many positional"),
        ((("mini",), {"model": "mini"}), "multiple values"),
    ],
)
def test_settings_that_do_not_exist_are_one_line(kind, given, message) -> None:
    with pytest.raises(OptionError, match=message):
        kind(*given[0], **given[1])


def test_the_order_of_arguments_is_one() -> None:
    for kind, how in zip(CLASSES, ("recipe", "operator", "scoring", "head"), strict=True):
        parameters = list(inspect.signature(kind).parameters.values())
        assert [one.name for one in parameters[:2]] == ["model", how]
        assert all(one.kind is inspect.Parameter.KEYWORD_ONLY for one in parameters[2:])


def test_what_does_not_go_with_a_loaded_model_is_one_line(tiny) -> None:
    for kind in CLASSES:
        for given in ({"device": "cpu"}, {"weights": "x.pt"}):
            with pytest.raises(OptionError, match="loaded already"):
                kind(tiny, **given)


PHOTO = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
OPTIONS = {
    "presence": 0.999,
    "views": "flip+scale",
    "precision": "bfloat16",
    "background": ["sky"],
    "templates": "photo",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_segmenter_reach_regions(tiny, name) -> None:
    boxes = [[4, 4, 30, 40], [20, 8, 60, 44]]
    settings = {"templates": "name", "background": "none", "proposals": None}
    plain, other = (
        RegionClassifier(tiny, **{**settings, **own})(PHOTO, ["cat", "dog"], boxes=boxes)
        for own in ({}, {name: OPTIONS[name]})
    )
    assert (plain.scores != other.scores).any()
    assert np.abs(other.scores.sum(axis=1)).max() <= 1 + 1e-5
    if name == "presence":
        assert other.meta["absent"] == ["cat", "dog"]
        assert set(other.labels.tolist()) == {-1}
