"""Mean intersection over union from an integer confusion matrix, and the area under the ROC curve."""

from __future__ import annotations

import numpy as np


def confusion(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels: int64 (classes, classes), truth down, found across; class 0 is background.

    Args:
        truth, found: integer arrays of one shape, values 0 to classes - 1.
        classes: number of classes with background.
    """
    joint = truth.astype(np.int64).ravel() * classes + found.ravel()
    return np.bincount(joint, minlength=classes * classes).reshape(classes, classes)


def iou_of_classes(counts: np.ndarray) -> np.ndarray:
    """IoU of every class in per cent, float (classes,); NaN where it neither occurs in the truth nor was found."""
    both = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - both
    return np.where(union > 0, 100 * both / np.maximum(union, 1), np.nan)


def mean_iou(counts: np.ndarray) -> float:
    """Mean IoU in per cent over the classes that occur in the truth or were found."""
    return float(np.nanmean(iou_of_classes(counts)))


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties half: scores float (n,), positive bool (n,)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    hits = int(positive.sum())
    misses = len(scores) - hits
    return float((rank[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))
