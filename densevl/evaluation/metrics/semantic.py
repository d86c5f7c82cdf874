"""Which integers are counted for an image, and what they come to at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.evaluation.benchmarks.datasets import Sample
from densevl.evaluation.metrics.boundary import boundary_counts, boundary_iou
from densevl.evaluation.metrics.calibration import BINS, calibration, calibration_counts
from densevl.evaluation.metrics.confusion import confusion, measures, per_class
from densevl.evaluation.metrics.structure import structure_counts, structure_summary, structure_zeros
from densevl.evaluation.predictors import Prediction

MEASURES = ("iou", "boundary", "calibration", "structure")
AllCounts = dict[str, npt.NDArray[np.int64]]


def zeros(names: tuple[str, ...], classes: int) -> AllCounts:
    """Counts of no image."""
    shapes = {"iou": (classes + 1, classes + 1), "boundary": (3, classes), "calibration": (3, BINS)}
    blank = {name: np.zeros(shapes[name], np.int64) for name in names if name in shapes}
    return blank | ({"structure": structure_zeros()} if "structure" in names else {})


def count(names: tuple[str, ...], classes: int, sample: Sample, found: Prediction, ratio: float) -> AllCounts:
    """Counts of one image."""
    counts = {"iou": confusion(sample.truth, found.labels, classes)}
    if "boundary" in names:
        counts["boundary"] = boundary_counts(sample.truth, found.labels, classes, ratio)
    if "calibration" in names:
        counts["calibration"] = calibration_counts(sample.truth, found.labels, found.confidence)
    if "structure" in names:
        counts["structure"] = structure_counts(sample.truth, found.labels)
    return counts


def added(one: AllCounts, other: AllCounts) -> AllCounts:
    """Sums by measure."""
    return {name: array + other[name] for name, array in one.items()}


def summary(counts: AllCounts) -> dict[str, float]:
    """The headline numbers: measures of `confusion.measures`, mean boundary IoU, ECE and MCE, and those of `structure`;
    0..1 or NaN."""
    table = measures(counts["iou"])
    if "boundary" in counts:
        outline = boundary_iou(counts["boundary"])
        table["boundary mIoU"] = float(np.nanmean(outline)) if not np.isnan(outline).all() else float("nan")
    if "calibration" in counts:
        errors = calibration(counts["calibration"])
        table |= {name: errors[name] for name in ("ECE", "MCE")}
    if "structure" in counts:
        table |= structure_summary(counts["structure"])
    return table


def class_rows(counts: AllCounts, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row a class: name, IoU, accuracy, precision, share of the truth, and boundary IoU where counted."""
    columns = per_class(counts["iou"])
    if "boundary" in counts:
        columns["boundary IoU"] = boundary_iou(counts["boundary"])
    return [
        {"class": name, **{key: float(values[index]) for key, values in columns.items()}}
        for index, name in enumerate(names)
    ]
