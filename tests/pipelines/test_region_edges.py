"""Regions at the edge of sense, end to end: the right answer or one clear line, whatever the form and the operator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import random_clip, wrap
from densevl.backbones import InferenceProtocol
from densevl.errors import ImageError, OptionError, ProposalError
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.proposals import Proposals

SIZE = (64, 96)
PHOTO = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
WORDS = ["cat", "dog", "sky"]


def mask(*spans: tuple[int, int, int, int]) -> np.ndarray:
    masks = np.zeros((len(spans), *SIZE), bool)
    for one, (x0, y0, x1, y1) in zip(masks, spans, strict=True):
        one[y0:y1, x0:x1] = True
    return masks


def boxes(count: int) -> np.ndarray:
    corners = np.random.default_rng(1).uniform(0, 50, (count, 2))
    return np.concatenate([corners, corners + np.random.default_rng(2).uniform(1, 40, (count, 2))], axis=1)


@pytest.fixture(scope="module")
def backbone():
    return wrap(random_clip())


@pytest.fixture(scope="module", params=["pool", "roi", "cls_mask", "cls_bias", "crop", "pool+cls_mask"])
def classify(request, backbone) -> RegionClassifier:
    protocol = InferenceProtocol(short_side=48, crop=32, stride=16)
    return RegionClassifier(
        backbone, request.param, proposals=None, templates="photo", protocol=protocol, background="none"
    )


@pytest.mark.parametrize(
    ("form", "filled"),
    [
        ({"regions": np.zeros((0, *SIZE), bool)}, []),
        ({"boxes": []}, []),
        ({"rle": []}, []),
        ({"regions": Proposals.empty(SIZE)}, []),
        ({"regions": mask((0, 0, 96, 64), (10, 10, 60, 50), (10, 10, 60, 50))}, [True, True, True]),
        ({"regions": mask((40, 20, 46, 26), (95, 63, 96, 64))}, [True, True]),
        ({"boxes": [[-50, -20, 12.5, 9.75], [90.5, 60.25, 400, 300]]}, [True, True]),
        ({"boxes": torch.tensor([[10.2, 10.9, 10.4, 11.2], [3.3, 4.4, 20.6, 30.7]])}, [True, True]),
    ],
    ids=[
        "no masks", "no boxes", "no RLE", "no proposals", "masks that overlap and repeat",
        "masks of 6 pixels and of one", "boxes over the edge", "boxes of floats, one within a pixel",
    ],
)  # fmt: skip
def test_odd_regions_get_the_right_answer(form, filled, classify) -> None:
    result = classify(PHOTO, WORDS, **form)
    assert len(result) == len(filled)
    assert np.isfinite(result.scores).all()
    assert ((result.labels >= 0) == np.array(filled, bool)).all()
    assert (result.regions.areas > 0).tolist() == filled
    assert result.panoptic().ids.shape == result.semantic().labels.shape == SIZE
    assert len(result.instances()) <= sum(filled)
    assert len(result.reclassify(["car", "bus"])) == len(filled)


def test_masks_of_six_pixels_keep_a_right_sized_feature(backbone, classify) -> None:
    found = classify.embed(PHOTO, regions=mask((40, 20, 46, 26)))
    for rows in found.vectors.values():
        assert rows.shape == (1, backbone.embed_dim)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(1))


@pytest.mark.parametrize("operator", ["pool", "cls_mask"])
def test_five_thousand_regions(operator, backbone) -> None:
    classify = RegionClassifier(
        backbone,
        operator,
        proposals=None,
        templates="photo",
        protocol=InferenceProtocol(short_side=32, crop=32),
        background="none",
    )
    result = classify(PHOTO, WORDS, boxes=boxes(5000))
    assert len(result) == 5000
    assert (result.labels >= 0).all()
    assert np.isfinite(result.confidence).all()
    assert 0 < len(result.instances(top=50)) <= 50
    assert result.semantic().labels.shape == SIZE


@pytest.mark.parametrize(
    ("rle", "said"),
    [
        (Proposals.from_masks(np.ones((1, 10, 12), bool)).to_rle(), r"RLE 0 is of \(10, 12\), the image \(64, 96\)"),
        ([{"size": list(SIZE), "counts": [5, 7]}], "add up to 12 pixels"),
        ([{"size": list(SIZE)}], "RLE 0 is not"),
    ],
    ids=["of another size", "cut off", "without runs"],
)
def test_a_wrong_rle_is_one_clear_line(rle, said, classify) -> None:
    with pytest.raises(ProposalError, match=said) as caught:
        classify(PHOTO, WORDS, rle=rle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["boxes", "points", "rle", "regions"])
@pytest.mark.parametrize("value", [5, "x"])
def test_what_is_no_list_of_regions_is_one_clear_line(form, value, classify) -> None:
    with pytest.raises((ProposalError, ImageError)):  # a map may be a file
        classify(PHOTO, WORDS, **{form: value})


def test_options_of_an_operator_are_a_mapping(backbone) -> None:
    with pytest.raises(OptionError, match="options of 'crop' are a int"):
        RegionClassifier(backbone, "crop", options={"crop": 5})


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"nope": 1}, "no option 'nope'; it has start"),
        ({"stert": 1}, "closest: start"),
        ({"windows": None}, "no option 'windows'"),
        ({"start": "x"}, "it must be a number"),
    ],
)
def test_options_of_an_operator_are_checked_before_a_photo_is_looked_at(backbone, own, said) -> None:
    with pytest.raises(OptionError, match=said):
        RegionClassifier(backbone, "balanced", proposals=None, options={"balanced": own})


@pytest.mark.parametrize("name", ["parts", "iou", "threshold", "top"])
@pytest.mark.parametrize("value", [-1, 1.5, float("nan"), "a", True])
def test_a_number_out_of_range_for_instances_is_one_line(classify, name, value) -> None:
    result = classify(PHOTO, WORDS, boxes=[[1, 1, 30, 30]])
    assert len(result.instances(parts=0.8, iou=1, threshold=0, top=1)) <= 1
    with pytest.raises(OptionError, match=name):
        result.instances(**{name: value})
