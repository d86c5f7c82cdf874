"""NMS and part suppression on packed masks, against the plain definitions."""

from __future__ import annotations

import numpy as np
import pytest

from densevl.errors import OptionError
from densevl.proposals.base import Proposals
from densevl.proposals.suppress import intersections
from densevl.regions.overlap import nms, suppress_parts


def blobs(count: int, seed: int, size: tuple[int, int] = (37, 53)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    cy, cx, ry, rx = (
        rng.uniform(low, high, count)[:, None, None] for low, high in ((0, 37), (0, 53), (1, 15), (1, 15))
    )
    return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1


def plain_nms(masks, scores, labels, threshold, metric) -> list[int]:
    flat = masks.reshape(len(masks), -1).astype(int)
    shared = flat @ flat.T
    areas = flat.sum(axis=1)
    whole = np.minimum.outer(areas, areas) if metric == "ios" else areas[:, None] + areas[None] - shared
    kept: list[int] = []
    for index in sorted(range(len(masks)), key=lambda i: (-scores[i], -areas[i], i)):
        if all(labels[index] != labels[k] or shared[index, k] <= threshold * whole[index, k] for k in kept):
            kept.append(index)
    return kept


@pytest.mark.parametrize("metric", ["iou", "ios"])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_nms_is_the_plain_one(metric, threshold) -> None:
    masks = np.concatenate([blobs(60, 1), blobs(5, 1)])  # five of them twice
    scores = np.random.default_rng(2).integers(0, 6, len(masks)) / 5  # many ties
    labels = np.arange(len(masks)) % 3
    given = Proposals.from_masks(masks)
    found = nms(given, scores, labels, threshold=threshold, metric=metric)
    assert found.tolist() == plain_nms(masks, scores, labels, threshold, metric)
    alone = nms(given, scores, threshold=threshold, metric=metric)
    assert alone.tolist() == plain_nms(masks, scores, np.zeros(len(masks)), threshold, metric)


def test_intersections_count_pixels() -> None:
    masks = blobs(20, 3)
    given = Proposals.from_masks(masks)
    for one in range(20):
        assert intersections(given, one, range(20)).tolist() == (masks & masks[one]).sum(axis=(1, 2)).tolist()


def test_ties_do_not_depend_on_luck() -> None:
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :4], masks[1, :5], masks[2, :5] = True, True, True
    assert nms(Proposals.from_masks(masks), [0.5, 0.5, 0.5]).tolist() == [1]


def test_a_ring_does_not_remove_its_disc() -> None:
    y, x = np.mgrid[:40, :40]
    distance = np.hypot(y - 20, x - 20)
    masks = Proposals.from_masks(np.stack([(distance < 18) & (distance > 12), distance < 12]))
    assert sorted(nms(masks, [0.9, 0.8])) == [0, 1]


def test_parts_of_a_whole_of_the_same_name_go() -> None:
    masks = np.zeros((5, 20, 20), bool)
    masks[0, 2:18, 2:18] = True  # the car
    masks[1, 4:8, 4:8] = True  # its wheel, called a car
    masks[2, 4:8, 12:16] = True  # a driver in it
    masks[3, 14:20, 14:20] = True  # another car, half hidden
    given, labels = Proposals.from_masks(masks), [0, 0, 1, 0, 0]  # the last is empty
    assert suppress_parts(given, labels).tolist() == [0, 2, 3, 4]
    assert suppress_parts(given, [-1] * 5).tolist() == [0, 1, 2, 3, 4]
    assert nms(given, np.ones(5), labels).tolist() == [0, 3, 1, 2, 4], "IoU sees no repetition"


def test_nothing_and_a_wrong_metric() -> None:
    assert nms(Proposals.empty((5, 5)), []).tolist() == []
    assert suppress_parts(Proposals.empty((5, 5)), []).tolist() == []
    with pytest.raises(OptionError, match="closest: iou"):
        nms(Proposals.empty((5, 5)), [], metric="iuo")
