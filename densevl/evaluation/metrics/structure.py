"""Structure measures of camouflaged object segmentation, which also require the right class.

For one object per image: S-measure (Fan et al., ICCV 2017), weighted F (Margolin et al., CVPR 2014), mean absolute
error, F-measure, E-measure (Fan et al., IJCAI 2018) and IoU. Open-vocabulary camouflaged object segmentation (Pang et
al., ECCV 2024) gives an image with the wrong class 0, and an error of 1. It calls the means over images cS, cFw, cMAE,
cF, cE and cIoU; the last three are curves over 256 thresholds, reported by their mean and maximum.

Sums are kept in fixed point, so they add up exactly in any order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import EvaluationError
from densevl.evaluation.metrics.confusion import Counts
from densevl.lazy import ndimage

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LEVELS = 256
UNIT = 2**30
"""Scores are rounded to 1 / UNIT; eight thousand million images fit into an int64 sum."""
CURVES = ("cF", "cE", "cIoU")
_IMAGES, _RIGHT, _S, _WEIGHTED, _MAE = range(5)
_EPS = float(np.spacing(1))
_F_BETA2 = 0.3


def structure_zeros() -> Counts:
    """Counts of no image."""
    return np.zeros((1 + len(CURVES), LEVELS), np.int64)


def structure_counts(truth: npt.NDArray[Any], found: npt.NDArray[Any]) -> Counts:
    """Count an image: int64 (4, 256): images, right classes and sums of S, weighted F and error; F, E and IoU curves.

    Args:
        truth: (H, W), 0 background and one class above it, negative where not scored. found: (H, W), likewise; its
            class is the one with most pixels, and these are the object.

    Raises:
        EvaluationError: the truth has no class, or several.
    """
    classes = np.unique(truth[truth > 0])
    if len(classes) != 1:
        raise EvaluationError(
            f"structure measures are for one object per image, and this truth has {len(classes)} classes; "
            "leave 'structure' out of the measures"
        )
    counts = structure_zeros()
    counts[0, _IMAGES], counts[0, _MAE] = 1, UNIT
    areas = np.bincount(found[(found > 0) & (truth >= 0)].astype(np.int64), minlength=1)
    if not areas.any() or int(areas.argmax()) != int(classes[0]):
        return counts
    target = truth == classes[0]
    score = ((found == classes[0]) & (truth >= 0)).astype(np.float64)
    scalars = [1.0, s_measure(score, target), weighted_f(score, target), mean_error(score, target)]
    counts[0, _RIGHT : _MAE + 1] = np.rint(np.array(scalars) * UNIT).astype(np.int64)
    counts[1:] = np.rint(np.stack(curves(score, target)) * UNIT).astype(np.int64)
    return counts


def structure_summary(counts: Counts) -> dict[str, float]:
    """cS, cFw, cMAE, mean and maximum of cF, cE and cIoU, and the share of right classes, 0..1; NaN without images."""
    images = int(counts[0, _IMAGES])
    if not images:
        names = ("cS", "cFw", "cMAE", *(f"{name} {kind}" for name in CURVES for kind in ("mean", "max")), "right class")
        return dict.fromkeys(names, float("nan"))
    means = counts / (images * UNIT)
    table = {"cS": means[0, _S], "cFw": means[0, _WEIGHTED], "cMAE": means[0, _MAE]}
    for name, curve in zip(CURVES, means[1:], strict=True):
        table |= {f"{name} mean": curve.mean(), f"{name} max": curve.max()}
    return {name: float(value) for name, value in table.items()} | {"right class": float(means[0, _RIGHT])}


def mean_error(score: Floats, target: Mask) -> float:
    """Mean absolute difference; score (H, W) 0..1."""
    return float(np.abs(score - target).mean())


def s_measure(score: Floats, target: Mask, alpha: float = 0.5) -> float:
    """Similarity of objects and of the four regions around the object's centre, 0..1."""
    share = float(target.mean())
    if share in (0.0, 1.0):
        return float(score.mean() if share else 1 - score.mean())
    inside, outside = _object(score[target]), _object(1 - score[~target])
    objects = share * inside + (1 - share) * outside
    return max(0.0, alpha * objects + (1 - alpha) * _regions(score, target))


def _object(values: Floats) -> float:
    mean, deviation = values.mean(), values.std(ddof=1) if values.size > 1 else 0.0
    return float(2 * mean / (mean**2 + 1 + deviation + _EPS))


def _regions(score: Floats, target: Mask) -> float:
    rows, columns = np.nonzero(target)
    row, column = int(np.round(rows.mean())) + 1, int(np.round(columns.mean())) + 1
    parts = [(slice(None, row), slice(None, column)), (slice(None, row), slice(column, None))]
    parts += [(slice(row, None), slice(None, column)), (slice(row, None), slice(column, None))]
    total = 0.0
    for part in parts:
        if target[part].size:
            total += target[part].size / target.size * _likeness(score[part], target[part].astype(np.float64))
    return total


def _likeness(one: Floats, other: Floats) -> float:
    """SSIM of two regions, each taken as one window."""
    mean, mean_other, count = one.mean(), other.mean(), max(1, one.size - 1)
    spread, spread_other = ((one - mean) ** 2).sum() / count, ((other - mean_other) ** 2).sum() / count
    both = ((one - mean) * (other - mean_other)).sum() / count
    above, below = 4 * mean * mean_other * both, (mean**2 + mean_other**2) * (spread + spread_other)
    if above != 0:
        return float(above / (below + _EPS))
    return 1.0 if below == 0 else 0.0


def weighted_f(score: Floats, target: Mask, beta2: float = 1.0) -> float:
    """F-measure whose errors weigh less next to correct pixels and more far from the object, 0..1."""
    if not target.any():
        return 0.0
    error = np.abs(score - target)
    distance, nearest = ndimage.distance_transform_edt(~target, return_indices=True)
    spread = error.copy()
    spread[~target] = error[nearest[0][~target], nearest[1][~target]]
    steps = np.arange(-3, 4)
    kernel = np.exp(-(steps[:, None] ** 2 + steps[None] ** 2) / (2 * 5.0**2))
    near = ndimage.convolve(spread, kernel / kernel.sum(), mode="constant", cval=0.0)
    weight = np.where(target, 1.0, 2 - np.exp(np.log(0.5) / 5 * distance))
    weighted = np.where(target & (near < error), near, error) * weight
    recall = 1 - weighted[target].mean()
    right = target.sum() - weighted[target].sum()
    precision = right / (right + weighted[~target].sum() + _EPS)
    return float((1 + beta2) * recall * precision / (recall + beta2 * precision + _EPS))


def curves(score: Floats, target: Mask) -> tuple[Floats, Floats, Floats]:
    """F (beta squared 0.3), E and IoU of the masks score * 255 >= 255, 254, ..., 0: float64 (256,) each."""
    levels = (np.clip(score, 0, 1) * (LEVELS - 1)).astype(np.int64)
    hits, false = (np.cumsum(np.bincount(levels[part], minlength=LEVELS)[::-1]) for part in (target, ~target))
    objects, pixels = int(target.sum()), target.size
    found = hits + false
    precision = hits / np.maximum(found, 1)
    recall = hits / max(objects, 1)
    above, below = (1 + _F_BETA2) * precision * recall, _F_BETA2 * precision + recall
    f_curve = np.where(above > 0, above / np.where(below > 0, below, 1), 0.0)
    union = objects + false
    iou_curve = np.where(union > 0, hits / np.maximum(union, 1), 0.0)
    return f_curve, _alignment(hits, false, objects, pixels), iou_curve


def _alignment(hits: npt.NDArray[np.int64], false: npt.NDArray[np.int64], objects: int, pixels: int) -> Floats:
    """E-measure from counts; all pixels of one kind (in truth or not, found or not) have the same alignment."""
    found = hits + false
    if objects in (0, pixels):
        return np.asarray((found if objects else pixels - found) / (pixels - 1 + _EPS))
    mean_found, mean_truth = found / pixels, objects / pixels
    total: Floats = np.zeros(len(hits))
    kinds = ((1, 1, hits), (1, 0, false), (0, 1, objects - hits), (0, 0, pixels - objects - false))
    for is_found, is_truth, amount in kinds:
        one, other = is_found - mean_found, is_truth - mean_truth
        total += amount * (2 * one * other / (one**2 + other**2 + _EPS) + 1) ** 2 / 4
    return total / (pixels - 1 + _EPS)
