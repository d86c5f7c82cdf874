"""Connected parts of a mask, by its runs: told apart, and those of a few pixels taken out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]


def tidy(mask: BoolArray, min_area: int) -> tuple[BoolArray, bool]:
    """Fill holes and drop islands of less than `min_area` pixels; the largest island stays, however small.

    Args:
        mask: bool (H, W); pixels that touch at a corner are connected, in islands and in holes.
        min_area: pixels.

    Returns:
        bool (H, W), the given array if nothing changed; and whether something did.
    """
    filled = _without_small(~mask, min_area, keep_largest=False)
    result = mask if filled is None else ~filled
    kept = _without_small(result, min_area, keep_largest=True)
    result = result if kept is None else kept
    return result, filled is not None or kept is not None


def components(mask: BoolArray) -> npt.NDArray[np.int32]:
    """Number the connected parts of a mask, bool (H, W), in the order of their first pixel.

    Returns:
        int32 (H, W): 0 outside the mask, then 1, 2, ...; pixels that touch at a corner are connected.
    """
    rows, starts, ends = _runs(mask)
    labels = np.zeros(mask.shape, np.int32)
    if len(rows):
        _, number = np.unique(_roots(rows, starts, ends, mask.shape[1]), return_inverse=True)
        labels[mask] = np.repeat(number + 1, ends - starts)  # pixels of a mask come run by run
    return labels


def _without_small(mask: BoolArray, min_area: int, *, keep_largest: bool) -> BoolArray | None:
    """Drop components below `min_area`; None if there are none."""
    rows, starts, ends = _runs(mask)
    if not len(rows):
        return None
    root = _roots(rows, starts, ends, mask.shape[1])
    areas = np.bincount(root, weights=ends - starts, minlength=len(root))
    small = areas[root] < min_area
    if keep_largest:
        small &= root != areas.argmax()
    if not small.any():
        return None
    result = mask.copy()
    for row, start, end in zip(rows[small], starts[small], ends[small], strict=True):
        result[row, start:end] = False
    return result


def _runs(mask: BoolArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Runs of each row, top to bottom: row, first column, and the column behind the last."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    return rows, starts, np.nonzero(steps == -1)[1]


def _roots(
    rows: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], width: int
) -> npt.NDArray[np.int64]:
    """The first run of the component of each run, (runs,): runs of neighbouring rows that touch are one."""
    stride = width + 2
    below = (rows + 1) * stride
    low = np.searchsorted(rows * stride + ends, below + starts, side="left")
    high = np.searchsorted(rows * stride + starts, below + ends, side="right")
    count = np.maximum(high - low, 0)
    upper = np.repeat(np.arange(len(rows)), count)
    lower = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    root = np.arange(len(rows))
    while True:
        one, other = root[upper], root[lower]
        if np.array_equal(one, other):
            return root
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(root, root[root]):
            root = root[root]
