"""What callers give as masks, boxes, points and qualities: made uniform, or one line that says what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import ProposalError


def checked_mask(mask: Any, size: tuple[int, ...], index: int) -> npt.NDArray[np.bool_]:
    """One mask as bool (H, W).

    Raises:
        ProposalError: another size, or values that are no mask.
    """
    array = _array(mask)
    if array.shape != tuple(size) or array.ndim != 2:
        shape = "x".join(map(str, array.shape))
        raise ProposalError(f"mask {index} is of {shape or 'no'} pixels, the image of {'x'.join(map(str, size))}")
    if array.dtype == np.bool_:
        return array
    values = np.unique(array)
    if not np.isin(values, (0, 1, 255)).all():
        raise ProposalError(
            f"mask {index} holds values from {values[0]:g} to {values[-1]:g}: a mask is bool or 0 and 1; "
            "threshold soft masks, split label maps (labels == 3)"
        )
    return array != 0


def checked_quality(quality: Any, count: int) -> npt.NDArray[np.float32]:
    """Qualities as float32 (M,), 1 where there are none.

    Raises:
        ProposalError: another length, or values outside 0-1.
    """
    if quality is None:
        return np.ones(count, np.float32)
    array = np.asarray(_array(quality), np.float32)
    if array.shape != (count,):
        raise ProposalError(f"quality of shape {array.shape} for {count} masks: ({count},)")
    if not ((array >= 0) & (array <= 1)).all():
        raise ProposalError(f"quality spans {array.min():.4g} to {array.max():.4g}: numbers from 0 to 1")
    return array


def checked_boxes(boxes: Any) -> npt.NDArray[np.float64]:
    """Boxes as float64 (M, 4).

    Raises:
        ProposalError: another shape, NaN or infinity, or a box with x1 < x0 or y1 < y0.
    """
    array = np.asarray(_array(boxes), np.float64)
    array = array.reshape(0, 4) if array.size == 0 else array
    array = array[None] if array.shape == (4,) else array
    if array.ndim != 2 or array.shape[1] != 4:
        raise ProposalError(f"boxes of shape {array.shape}: (M, 4), x0 y0 x1 y1 in pixels")
    wrong = ~np.isfinite(array).all(axis=1) | (array[:, 2:] < array[:, :2]).any(axis=1)
    if wrong.any():
        index = int(wrong.argmax())
        x0, y0, x1, y1 = array[index]
        raise ProposalError(
            f"box {index} is ({x0:g}, {y0:g}, {x1:g}, {y1:g}): finite x0 y0 x1 y1 with x0 <= x1 and y0 <= y1"
        )
    return array


def checked_points(
    points: Any, labels: Any, size: tuple[int, int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Points as float64 (P, K, 2) and their labels as int64 (P, K).

    Raises:
        ProposalError: other shapes, a label that is not 0 or 1, or a point outside the image.
    """
    array = np.asarray(_array(points), np.float64)
    array = array.reshape(0, 1, 2) if array.size == 0 else array
    array = array[:, None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] != 2:
        raise ProposalError(f"points of shape {array.shape}: (P, 2) or (P, K, 2), x and y in pixels")
    height, width = size
    outside = ~((array >= 0) & (array <= [width, height])).all(axis=2)
    if outside.any():
        index, place = np.argwhere(outside)[0]
        x, y = array[index, place]
        raise ProposalError(f"point ({x:g}, {y:g}) of prompt {index} is outside the image of {width} x {height} pixels")
    if labels is None:
        return array, np.ones(array.shape[:2], np.int64)
    marks = _array(labels)
    marks = marks[:, None] if marks.ndim == 1 else marks
    if marks.shape != array.shape[:2] or not np.isin(marks, (0, 1)).all():
        raise ProposalError(f"labels of shape {marks.shape} for points {array.shape[:2]}: a 0 or 1 for each point")
    return array, marks.astype(np.int64)


def _array(given: Any) -> npt.NDArray[Any]:
    return np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
