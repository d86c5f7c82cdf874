"""Boundary IoU (Cheng et al., 2021) of label maps, from integer counts: the accuracy of outlines.

The boundary of a class is the part of it within d pixels of its edge; the border of the image counts as an edge. d is a
fraction of the image's diagonal: 0.02 for COCO and LVIS, 0.005 for Cityscapes. Eroding each class takes d steps per
class. But a pixel is in the boundary of its class exactly if another label lies in the square of side 2d + 1 around it,
so one sliding minimum and maximum serve all classes at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.evaluation.metrics.confusion import Counts, Floats

DILATION = 0.02
_OUTSIDE = -(2**15)


def width(height: int, width_: int, ratio: float = DILATION) -> int:
    """d in pixels for an image of this size, at least 1."""
    return max(1, round(ratio * float(np.hypot(height, width_))))


def boundary(labels: npt.NDArray[Any], distance: int) -> npt.NDArray[np.bool_]:
    """Pixels within `distance` of another label or of the image's border: bool (H, W)."""
    padded = np.pad(labels.astype(np.int16), distance, constant_values=_OUTSIDE)
    high = low = padded
    for axis in (0, 1):
        high, low = _slide(high, 2 * distance + 1, axis, np.maximum), _slide(low, 2 * distance + 1, axis, np.minimum)
    return (high != labels) | (low != labels)


def boundary_counts(truth: npt.NDArray[Any], found: npt.NDArray[Any], classes: int, ratio: float = DILATION) -> Counts:
    """Count boundary pixels of each class: int64 (3, C): in both, in the truth, found.

    Args:
        truth, found: as `confusion.confusion` takes them; unscored pixels are not counted, but bound their neighbours.
    """
    distance = width(truth.shape[0], truth.shape[1], ratio)
    scored = (truth >= 0) & (truth < classes)
    of_truth = boundary(truth, distance) & scored
    of_found = boundary(found, distance) & (truth >= 0) & (found >= 0)
    both = of_truth & of_found & (truth == found)
    return np.stack(
        [
            np.bincount(truth[both], minlength=classes),
            np.bincount(truth[of_truth], minlength=classes),
            np.bincount(found[of_found], minlength=classes),
        ]
    ).astype(np.int64)


def boundary_iou(counts: Counts) -> Floats:
    """Boundary IoU of each class, 0..1, (C,), NaN where a class has no boundary in truth or prediction."""
    both, truth, found = counts
    union = truth + found - both
    return np.where(union > 0, both / np.maximum(union, 1), np.nan)


def _slide(values: npt.NDArray[np.int16], length: int, axis: int, pick: Any) -> npt.NDArray[np.int16]:
    """Sliding minimum or maximum over `length` neighbours along an axis, in log2(length) passes."""
    total = values.shape[axis] - length + 1

    def part(array: npt.NDArray[np.int16], start: int, count: int) -> npt.NDArray[np.int16]:
        index = [slice(None), slice(None)]
        index[axis] = slice(start, start + count)
        return array[tuple(index)]

    reach = 1  # `values` holds the pick over `reach` neighbours
    while 2 * reach <= length:
        count = values.shape[axis] - reach
        values = pick(part(values, 0, count), part(values, reach, count))
        reach *= 2
    return np.asarray(pick(part(values, 0, total), part(values, length - reach, total)))
