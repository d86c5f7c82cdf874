"""Calibration of dense predictions: whether a pixel with confidence 0.8 gets the right label four times in five.

Confidences are added in fixed point, so sums do not depend on the order of images or the number of processes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.evaluation.metrics.confusion import Counts

BINS = 15
_SHIFT = 20
UNIT = 2**_SHIFT
"""Confidences are rounded to 1 / UNIT; 2^43 pixels fit into an int64 sum."""


def calibration_counts(
    truth: npt.NDArray[Any], found: npt.NDArray[Any], confidence: npt.NDArray[Any], bins: int = BINS
) -> Counts:
    """Count scored pixels by confidence: int64 (3, bins): pixels, sum of confidence in 1 / UNIT, correct ones.

    Args:
        truth: (H, W), negative where not scored; found: (H, W); confidence: (H, W), 0..1. Bins are of equal width,
            closed on the left, the last on both sides. Pixels for which nothing was found are left out.
    """
    scored = (truth >= 0) & (found >= 0)
    # A power of two only moves the exponent, so float32 stays exact up to the rounding.
    values, right = (
        (confidence.ravel(), (truth == found).ravel())
        if scored.all()
        else (
            confidence[scored],
            truth[scored] == found[scored],
        )
    )
    fixed = np.rint(np.clip(values, 0, 1) * np.float32(UNIT)).astype(np.int64)
    place = np.minimum(fixed * bins >> _SHIFT, bins - 1)
    wrong_right = np.bincount(2 * place + right, minlength=2 * bins).reshape(bins, 2)
    sums = np.bincount(place, weights=fixed, minlength=bins)  # integers under 2^53 are exact in float64
    return np.stack([wrong_right.sum(axis=1), sums, wrong_right[:, 1]]).astype(np.int64)


def calibration(counts: Counts) -> dict[str, Any]:
    """Expected and maximum calibration error, 0..1 (NaN without pixels), and mean confidence and accuracy per bin."""
    pixels, sums, right = counts
    inside = np.maximum(pixels, 1)
    mean, accuracy = sums / UNIT / inside, right / inside
    gap = np.abs(accuracy - mean)
    total = int(pixels.sum())
    return {
        "ECE": float((pixels * gap).sum() / total) if total else float("nan"),
        "MCE": float(gap[pixels > 0].max()) if total else float("nan"),
        "bins": [
            {"pixels": int(n), "confidence": float(c), "accuracy": float(a)}
            for n, c, a in zip(pixels, mean, accuracy, strict=True)
        ],
    }
