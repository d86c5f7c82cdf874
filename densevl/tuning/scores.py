"""Measures from counts of images, and whether two of them differ by more than chance.

An image counts (3, C): for each class the pixels (regions, images) that are right, that are in the truth, and that were
predicted. Counts are added over images and divided once. Shape letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
RESAMPLED, SWAPPED = 1000, 4096
"""Draws of a bootstrap, and of a permutation test, which tries all permutations if there are fewer."""
SURE = 0.05
_BLOCK = 256  # draws that are summed together


def mean_iou(counts_3C: Counts) -> Floats:
    """Mean IoU over the classes in the truth, 0..1 (...,), NaN if there are none; counts (..., 3, C)."""
    right, truth, found = np.moveaxis(counts_3C, -2, 0)
    return _mean(right, truth + found - right, truth > 0)


def mean_recall(counts_3C: Counts) -> Floats:
    """The mean over classes of the share that is right, 0..1 (...,), NaN if there are none; counts (..., 3, C)."""
    right, truth, _ = np.moveaxis(counts_3C, -2, 0)
    return _mean(right, truth, truth > 0)


def _mean(above: Counts, below: Counts, there: npt.NDArray[np.bool_]) -> Floats:
    shares = np.where(there, above / np.maximum(below, 1), 0.0)
    number = there.sum(axis=-1)
    return np.where(number > 0, shares.sum(axis=-1) / np.maximum(number, 1), np.nan)


Measure = Callable[[Counts], Floats]
MEASURES: Mapping[str, Measure] = {"mIoU": mean_iou, "accuracy": mean_recall, "agreement": mean_iou}


@dataclass(frozen=True)
class Difference:
    """How much better one way is than another on the same images.

    Attributes:
        value: the difference of the measures. low, high: its 95 % interval (bootstrap over images).
        error: its standard error. p: how often chance alone gives as large a difference (permutation test, two-sided).
    """

    value: float
    low: float
    high: float
    error: float
    p: float

    @property
    def sure(self) -> bool:
        """Whether it is more than noise, for better or worse."""
        return self.p < SURE


def difference(one_N3C: Counts, other_N3C: Counts, measure: Measure, seed: int = 0) -> Difference:
    """The first minus the second, counted on the same N images.

    The interval comes from images redrawn with replacement (Efron 1979). The test swaps the two on some of the images:
    in all ways if there are at most 4096, otherwise in as many at random (Fisher 1935). With fewer than six images it
    can never be certain: 2 of the 2^N ways are as extreme as any result.

    Args: one_N3C, other_N3C: int64 (N, 3, C), N at least 1. seed: of the random draws.
    """
    rng, number = np.random.default_rng(seed), len(one_N3C)
    value = float(measure(one_N3C.sum(axis=0)) - measure(other_N3C.sum(axis=0)))
    if np.array_equal(one_N3C, other_N3C):
        return Difference(value, 0.0, 0.0, 0.0, 1.0)
    drawn = rng.multinomial(number, np.full(number, 1 / number), size=RESAMPLED)
    found = measure(_summed(drawn, one_N3C)) - measure(_summed(drawn, other_N3C))
    found = found[~np.isnan(found)]
    low, high = np.percentile(found, (2.5, 97.5)) if found.size else (np.nan, np.nan)
    ways = _swaps(number, rng)
    kept = _summed(ways, one_N3C) + _summed(1 - ways, other_N3C)
    moved = _summed(1 - ways, one_N3C) + _summed(ways, other_N3C)
    extreme = np.abs(measure(kept) - measure(moved)) >= abs(value) - 1e-12
    exact = len(ways) == 2**number if number < 63 else False
    p = extreme.mean() if exact else (1 + extreme.sum()) / (1 + len(ways))
    return Difference(value, float(low), float(high), float(found.std()) if found.size else np.nan, float(p))


def _swaps(number: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Which of two ways each image takes, 1 or 0 (ways, N)."""
    if 2**number <= SWAPPED:
        return (np.arange(2**number)[:, None] >> np.arange(number)) & 1
    return rng.integers(0, 2, size=(SWAPPED, number))


def _summed(times_BN: npt.NDArray[np.int64], counts_N3C: Counts) -> Counts:
    """Sums of the counts of N images, each repeated by its entry in `times_BN`: (B, 3, C)."""
    flat = counts_N3C.reshape(len(counts_N3C), -1).astype(np.float64)  # exact to 2^53, and fast
    rows = [times_BN[start : start + _BLOCK] @ flat for start in range(0, len(times_BN), _BLOCK)]
    return np.concatenate(rows).astype(np.int64).reshape(len(times_BN), *counts_N3C.shape[1:])
