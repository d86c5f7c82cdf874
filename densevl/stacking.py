"""Stack overlapping masks: the smaller one is on top, or the first one of equal size."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def back_to_front(areas: Any, priority: Any = None) -> npt.NDArray[np.int64]:
    """Return the order to paint masks in: the last one painted over a pixel is the one on top.

    Args:
        areas: (M,) number of pixels of each mask.
        priority: (M,) numbers that take precedence over the areas, with the highest on top. None means all equal.

    Returns:
        int64 (M,), a permutation of the masks.
    """
    sizes = np.asarray(areas)
    first = np.zeros(len(sizes)) if priority is None else np.asarray(priority, np.float64)
    return np.lexsort((-np.arange(len(sizes)), -sizes, first))
