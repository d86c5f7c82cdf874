"""mIoU and related measures from one matrix of integer counts: IoU, accuracies, Dice, frequency-weighted IoU.

Counts are added over the whole dataset and divided once at the end, as in mmsegmentation, not averaged over images. A
class neither in the truth nor predicted has no IoU (NaN) and is left out of means; one that is only predicted has 0 and
counts. Counts are int64, because float32 sums lose pixels from 2^24 on.

Shape letters: H/W pixels, C classes; row and column C hold everything outside all classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def confusion(truth: npt.NDArray[Any], found: npt.NDArray[Any], classes: int) -> Counts:
    """Count pixels: int64 (C + 1, C + 1), truth down, found across.

    Args:
        truth: integers (H, W): 0 to C - 1, negative where not scored, C for scored pixels outside all classes.
        found: integers (H, W): 0 to C - 1, negative where nothing was found.
        classes: C.
    """
    side = classes + 1
    scored = truth >= 0
    rows, columns = truth[scored].astype(np.int64), found[scored].astype(np.int64)
    columns[columns < 0] = classes
    return np.bincount(rows * side + columns, minlength=side * side).reshape(side, side)


def iou(counts: Counts) -> Floats:
    """IoU of every class, 0..1, float64 (C,), NaN where the class neither occurs nor was found."""
    both, truth, found = _areas(counts)
    return _divide(both, truth + found - both)


def measures(counts: Counts) -> dict[str, float]:
    """Every measure of a matrix, 0..1.

    Returns:
        mIoU, pixel accuracy (aAcc), mean class accuracy (mAcc), mean Dice (mDice), frequency-weighted IoU (fwIoU), the
        share of scored pixels for which nothing was found (unassigned), and the number of classes without IoU (absent).
    """
    both, truth, found = _areas(counts)
    ious, scored = _divide(both, truth + found - both), max(1, int(truth.sum()))
    share = truth / scored
    return {
        "mIoU": mean(ious),
        "aAcc": float(both.sum() / scored) if truth.sum() else float("nan"),
        "mAcc": mean(_divide(both, truth)),
        "mDice": mean(_divide(2 * both, truth + found)),
        "fwIoU": float(np.nansum(share * ious)) if truth.sum() else float("nan"),
        "unassigned": float(counts[:, -1].sum() / max(1, int(counts.sum()))),
        "absent": float(np.isnan(ious).sum()),
    }


def per_class(counts: Counts) -> dict[str, Floats]:
    """IoU, accuracy (recall), precision and share of the scored truth, each (C,), NaN where undefined."""
    both, truth, found = _areas(counts)
    return {
        "IoU": iou(counts),
        "accuracy": _divide(both, truth),
        "precision": _divide(both, found),
        "share": truth / max(1, int(truth.sum())),
    }


def confused(counts: Counts, most: int = 20) -> list[tuple[int, int, int]]:
    """The largest mistakes as (truth, found, pixels); C stands for nothing."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    places = [np.unravel_index(place, wrong.shape) for place in order]
    return [(int(row), int(column), int(wrong[row, column])) for row, column in places if wrong[row, column] > 0]


def image_miou(counts: Counts) -> float:
    """mIoU of one image over the classes of its truth, for ranking images; NaN if no pixel is scored."""
    both, truth, found = _areas(counts)
    return mean(_divide(both, truth + found - both)[truth > 0])


def _areas(counts: Counts) -> tuple[Counts, Counts, Counts]:
    """Pixels of each class in both, in the truth, and found: (C,) each."""
    return np.diagonal(counts)[:-1], counts[:-1].sum(axis=1), counts[:, :-1].sum(axis=0)


def _divide(above: Counts, below: Counts) -> Floats:
    return np.where(below > 0, above / np.maximum(below, 1), np.nan)


def mean(values: Floats) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")
