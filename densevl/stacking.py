"""Masks that overlap: the smaller one is on top, of equals the first."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def back_to_front(areas: Any, priority: Any = None) -> npt.NDArray[np.int64]:
    """The order to paint masks in, so that the last one over a pixel is the one on top.

    Args:
        areas: (M,) pixels of each mask.
        priority: (M,) numbers that decide before the areas do, the highest on top; None is the same for all.

    Returns:
        int64 (M,), a permutation.
    """
    sizes = np.asarray(areas)
    first = np.zeros(len(sizes)) if priority is None else np.asarray(priority, np.float64)
    return np.lexsort((-np.arange(len(sizes)), -sizes, first))
