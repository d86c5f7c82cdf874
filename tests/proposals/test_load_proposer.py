"""Every name gives a proposer that keeps the contract, and what cannot be had is one line."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from densevl.errors import DensevlError, MissingExtraError, ModelError
from densevl.proposals import NAMES, ProposalError, Proposals, given, load_proposer, others
from densevl.proposals.others import MissingPackageError, RecordsProposer
from densevl.proposals.sam.mini_sam import WEIGHTS
from densevl.shipped import is_shipped


def _colours(rgb: np.ndarray) -> np.ndarray:
    """Features of every fourth pixel: its colour, about the mean."""
    return (rgb[::4, ::4].astype(np.float32) - 100).transpose(2, 0, 1)


def _two_squares() -> np.ndarray:
    image = np.full((60, 80, 3), (20, 200, 40), np.uint8)
    image[12:32, 12:32] = (220, 30, 30)
    image[32:56, 52:76] = (220, 30, 30)
    return image


def _load(name: str, **settings):
    if name == "sam":
        pytest.skip("its weights are no part of the package")
    if name == "mini-sam":
        pytest.importorskip("segment_anything")
        if not is_shipped(WEIGHTS):
            pytest.skip("this checkout holds no mini-sam")
    if name in ("superpixels", "felzenszwalb"):
        pytest.importorskip("skimage")
    return load_proposer(name, **({"encoder": _colours} if name == "clusters" else {}), **settings)


@pytest.mark.parametrize("shape", [(60, 80), (1, 1), (5, 90)])
@pytest.mark.parametrize("name", NAMES)
def test_every_proposer_keeps_the_contract(name: str, shape) -> None:
    image = _two_squares()[: shape[0], : shape[1]]
    image = np.pad(image, ((0, shape[0] - image.shape[0]), (0, shape[1] - image.shape[1]), (0, 0)))
    proposer = _load(name, **({"points_per_side": 4} if name == "mini-sam" else {}))
    assert proposer.name == name
    found, again = proposer(image), proposer(image)
    assert isinstance(found, Proposals)
    assert found.size == shape
    assert found.areas.min(initial=1) > 0
    np.testing.assert_array_equal(found.packed, again.packed)
    np.testing.assert_array_equal(found.quality, again.quality)


@pytest.mark.parametrize("name", ["superpixels", "felzenszwalb", "grid"])
def test_tiles_cover_the_image_once(name: str) -> None:
    masks = _load(name)(_two_squares()).masks()
    assert (masks.sum(axis=0) == 1).all()


@pytest.mark.parametrize("method", ["kmeans", "ncut"])
@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_are_split_into_connected_regions(method: str, seed: int) -> None:
    found = _load("clusters", clusters=2, method=method, seed=seed)(_two_squares())
    assert len(found) == 3
    squares = found.masks()[1:]
    for square, truth in zip(squares, (np.s_[32:56, 52:76], np.s_[12:32, 12:32]), strict=True):
        expected = np.zeros((60, 80), bool)
        expected[truth] = True
        assert (square & expected).sum() / (square | expected).sum() > 0.75


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "sams"}, "no proposer 'sams'.*closest: .*sam"),
        ({"name": "grid", "checkpoint": "x.pth"}, "'grid' has no checkpoint"),
        ({"name": "grid", "encoder": _colours}, "'grid' takes no encoder"),
        ({"name": "clusters"}, "'clusters' are of a model's features"),
        ({"name": "clusters", "encoder": _colours, "method": "dbscan"}, "no method 'dbscan'"),
        ({"name": "clusters", "encoder": _colours, "clusters": 1}, "at least 2"),
        ({"name": "grid", "cells": 0}, "at least 1"),
        ({"name": "grid", "cell": 3}, "unexpected keyword argument 'cell'"),
        ({"name": "superpixels", "segments": 0}, "at least 1"),
        ({"name": "felzenszwalb", "scale": 0}, "above 0"),
    ],
)
def test_wrong_requests_are_one_line(settings, said: str) -> None:
    if settings["name"] in ("superpixels", "felzenszwalb"):
        pytest.importorskip("skimage")
    with pytest.raises(DensevlError, match=said) as caught:
        load_proposer(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["superpixels", "felzenszwalb"])
def test_superpixels_name_their_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(MissingExtraError, match=r"scikit-image.*densevl\[superpixels\]"):
        load_proposer(name)


@pytest.mark.parametrize(
    "build",
    [
        lambda: others.mobile_sam("x.pt"),
        lambda: others.sam_hq("x.pth"),
        lambda: others.sam2("x.pt", "sam2.1_hiera_t.yaml"),
    ],
    ids=["mobile_sam", "segment_anything_hq", "sam2"],
)
def test_other_packages_are_named_when_absent(build, request, monkeypatch: pytest.MonkeyPatch) -> None:
    package = request.node.callspec.id
    for module in (package, f"{package}.build_sam"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=f"'{package}'") as caught:
        build()
    kind, parts = caught.value.__reduce__()
    assert str(kind(*parts)) == str(caught.value)


@pytest.mark.parametrize("output_mode", ["binary_mask", "coco_rle"])
def test_records_of_the_package_s_generator_are_taken(output_mode: str) -> None:
    records = [
        {"segmentation": _two_squares()[..., 0] < 100, "predicted_iou": 0.4},
        {"segmentation": _two_squares()[..., 0] > 100, "predicted_iou": 1.02},
    ]
    masks = [record["segmentation"] for record in records]
    if output_mode == "coco_rle":
        for record, entry in zip(records, Proposals.from_masks(masks).to_rle(), strict=True):
            record["segmentation"] = entry
    found = RecordsProposer("theirs", lambda rgb: records)(_two_squares())
    np.testing.assert_array_equal(found.masks(), masks[::-1])
    np.testing.assert_allclose(found.quality, [1, 0.4])
    assert len(RecordsProposer("none", lambda rgb: [])(_two_squares())) == 0
    with pytest.raises(ProposalError, match="records without 'segmentation'"):
        RecordsProposer("odd", lambda rgb: [{"mask": 1}])(_two_squares())


MASK = np.zeros((60, 80), bool)
MASK[3:9, 4:8] = True


@pytest.mark.parametrize(
    "form",
    [
        {"regions": [MASK]},
        {"regions": MASK},
        {"regions": MASK.astype(np.uint8) * 255},
        {"regions": [[4, 3, 8, 9]]},
        {"regions": np.array([[4, 3, 8, 9]])},
        {"regions": Proposals.from_masks([MASK]).to_rle()},
        {"boxes": [[4, 3, 8, 9]]},
        {"rle": Proposals.from_masks([MASK]).to_rle()},
        {"rle": [[[4, 3, 8, 3, 8, 9, 4, 9]]]},
        {"rle": {"segmentation": Proposals.from_masks([MASK]).to_rle()[0], "bbox": [4, 3, 4, 6]}},
        {"regions": Proposals.from_masks([MASK])},
    ],
    ids=[
        "a mask",
        "a bool map",
        "0 and 255",
        "a box",
        "boxes",
        "RLE as regions",
        "boxes=",
        "rle=",
        "a polygon",
        "an annotation",
        "proposals",
    ],
)
def test_what_the_caller_has_becomes_proposals(form) -> None:
    np.testing.assert_array_equal(given(_two_squares(), **form).masks(), MASK[None])


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({}, "give one of regions, boxes, rle, not none"),
        ({"regions": [MASK], "boxes": [[0, 0, 1, 1]]}, "not regions and boxes"),
        ({"regions": [MASK.T]}, r"mask 0 is \(80, 60\), the image \(60, 80\): it looks transposed"),
        (
            {"rle": [{"size": [80, 60], "counts": [4800]}]},
            r"RLE 0 is of \(80, 60\), .*; its size looks like",
        ),
        ({"regions": Proposals.empty((4, 5))}, r"the proposals are of \(4, 5\), the image \(60, 80\)"),
        ({"regions": [MASK, ~MASK & MASK]}, "region 1 of 2 holds no pixel"),
    ],
)
def test_what_does_not_belong_to_the_image_is_one_line(form, said: str) -> None:
    with pytest.raises(ProposalError, match=said):
        given(_two_squares(), **form)


def test_a_proxy_and_a_backbone_give_features(tiny) -> None:
    found = load_proposer("clusters", encoder=tiny, side=64, clusters=3)(_two_squares())
    assert found.size == (60, 80)
    assert found.areas.min() > 0


def test_unknown_checkpoints_are_named() -> None:
    pytest.importorskip("segment_anything")
    with pytest.raises(ModelError, match=r"no SAM checkpoint 'vit_bb'.*closest: vit_b"):
        load_proposer("sam", checkpoint="vit_bb")
