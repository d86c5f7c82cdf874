"""AUROC and FPR95 of a score that separates unknown from known, from two histograms of 2^12 bins.

Counts add up over images and processes. Scores should fill the bins: use log odds instead of probabilities.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BINS = 2**12
Counts = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]


def bins_of(scores: npt.NDArray[np.floating], low: float, high: float) -> npt.NDArray[np.int64]:
    """The bin of each score, of equal width between two ends; scores outside go to the bins at the ends."""
    place = (scores - low) * (BINS / max(high - low, 1e-12))
    return np.clip(place, 0, BINS - 1).astype(np.int64)


def auroc(known: Counts, unknown: Counts) -> Floats:
    """Share of pairs in which the unknown scores higher, ties counting half: (..., BINS) to (...), 0..1 or NaN."""
    below = np.cumsum(known, axis=-1, dtype=np.int64) - 0.5 * known
    pairs = known.sum(axis=-1, dtype=np.float64) * unknown.sum(axis=-1, dtype=np.float64)
    won = (unknown * below).sum(axis=-1, dtype=np.float64)
    return np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan)


def fpr_at(known: Counts, unknown: Counts, rate: float = 0.95) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Share of the known that score as high as `rate` of the unknown do, and the bin of that score.

    Returns:
        (...) 0..1, NaN without known or unknown; (...) the lowest bin that counts as unknown.
    """
    hits = np.cumsum(unknown[..., ::-1], axis=-1, dtype=np.int64)[..., ::-1]  # at or above each bin
    false = np.cumsum(known[..., ::-1], axis=-1, dtype=np.int64)[..., ::-1]
    some = (hits[..., 0] > 0) & (false[..., 0] > 0)
    enough = hits >= rate * hits[..., :1]
    place = np.where(some, enough.sum(axis=-1) - 1, 0)  # counts fall with the bin: take the last that has enough
    alarms = np.take_along_axis(false, place[..., None], axis=-1)[..., 0]
    return np.where(some, alarms / np.maximum(false[..., 0], 1), np.nan), place
