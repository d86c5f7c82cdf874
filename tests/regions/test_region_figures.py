"""The measures of tools.bench_regions, on maps small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from densevl.evaluation.metrics.panoptic import panoptic_counts, panoptic_quality
from densevl.proposals import Proposals
from tools.bench_regions import overlaps, segments


def test_overlaps_are_iou() -> None:
    masks = np.zeros((3, 4, 6), bool)
    masks[0, :2], masks[1, :, :3] = True, True
    found = overlaps(Proposals.from_masks(masks), Proposals.from_masks(masks[:2]))
    np.testing.assert_allclose(found, [[1, 6 / 18], [6 / 18, 1], [0, 0]])


def test_unnamed_pixels_count_as_the_background() -> None:
    truth = np.zeros((4, 10), int)
    truth[:, 4:8] = 1
    found = np.zeros((4, 10), int)
    found[:, 4:7] = 7  # 12 of 16
    found[:, 8:] = 9  # a thing where none is
    counts = panoptic_counts(*segments(truth, {1: 1}), *segments(found, {7: 1, 9: 2}), 3)
    background = 16 / 28  # 16 of both, 24 true, 20 found
    assert panoptic_quality(counts)["PQ"] == pytest.approx((background + 12 / 16 + 0) / 3)
