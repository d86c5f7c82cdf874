"""The measures of tools.bench_regions, on maps small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from densevl.proposals import Proposals
from tools.bench_regions import PanopticQuality, overlaps


def test_overlaps_are_iou() -> None:
    masks = np.zeros((3, 4, 6), bool)
    masks[0, :2], masks[1, :, :3] = True, True
    found = overlaps(Proposals.from_masks(masks), Proposals.from_masks(masks[:2]))
    np.testing.assert_allclose(found, [[1, 6 / 18], [6 / 18, 1], [0, 0]])


def test_panoptic_quality_is_the_paper_s() -> None:
    truth = np.zeros((4, 10), int)
    truth[:, 4:8] = 1
    found = np.zeros((4, 10), int)
    found[:, 4:7] = 7  # 12 of 16
    found[:, 8:] = 9  # a thing where none is
    quality = PanopticQuality(2)
    quality.add(truth, {0: 0, 1: 1}, found, {0: 0, 7: 1, 9: 2})
    background = 16 / 28  # 16 of both, 24 true, 20 found
    assert quality.value() == pytest.approx((background + 12 / 16 + 0) / 3)
    wrong = PanopticQuality(2)
    wrong.add(truth, {0: 0, 1: 1}, found, {0: 0, 7: 2, 9: 2})
    assert wrong.value() == pytest.approx(background / 3), "another class is a miss and a false find"
