"""Objects without their surroundings, and surroundings without objects, both by grey paint."""

from __future__ import annotations

import numpy as np

from densevl.errors import EvaluationError
from densevl.evaluation.analyses.base import Analysis, Finding, Row, Show, each, percent
from densevl.evaluation.benchmarks.base import Dataset
from densevl.evaluation.metrics.confusion import confusion, mean, per_class
from densevl.evaluation.predictors import Predictor

GREY = 124
GUESSED = 0.15
"""The share of painted-over objects that may be named before advice is given."""


def background_reliance(predictor: Predictor, dataset: Dataset, *, show: Show | None = None) -> Analysis:
    """Measure recall of objects on a grey background, and how often an object is named although it is painted over.

    Raises:
        EvaluationError: the benchmark has no background class.
    """
    require_background(dataset)
    classes = len(dataset.names)
    conditions = ("as it is", "background grey", "object grey")
    total = np.zeros((len(conditions), classes + 1, classes + 1), np.int64)
    for sample in each(dataset, show, "background"):
        nowhere = np.zeros(sample.truth.shape, bool)
        for at, grey in enumerate((nowhere, sample.truth <= 0, sample.truth > 0)):
            found = predictor(np.where(grey[..., None], np.uint8(GREY), sample.image)).labels
            total[at] += confusion(sample.truth, found, classes)
    columns = {name: per_class(own)["accuracy"][1:] for name, own in zip(conditions, total, strict=True)}
    rows: list[Row] = [
        {"class": name, **{key: float(values[index]) for key, values in columns.items()}}
        for index, name in enumerate(dataset.names[1:])
    ]
    means = {name: mean(values) for name, values in columns.items()}
    rows.insert(0, {"class": "mean", **means})
    text = (
        "Share of each class's pixels that get its label: in the photo, with everything but objects painted grey, and "
        "with the objects painted grey, where every hit comes from the surroundings alone."
    )
    return Analysis("Background reliance", text, {"": rows}, findings=[_finding(means["object grey"], rows[1:])])


def require_background(dataset: Dataset) -> None:
    """Refuse a benchmark whose labels do not say where objects end.

    Raises:
        EvaluationError: it has no background class.
    """
    if not dataset.classes.background:
        raise EvaluationError(f"'{dataset.name}' has no background class: nothing says where objects end")


def _finding(guessed: float, rows: list[Row]) -> Finding:
    text = f"Of painted-over objects, {percent(guessed)} of the pixels are still named (threshold {percent(GUESSED)})."
    if not guessed > GUESSED:
        return Finding(text)
    worst = [row for row in rows if row["object grey"] == row["object grey"]]
    worst.sort(key=lambda row: -float(row["object grey"]))
    names = ", ".join(str(row["class"]) for row in worst[:3])
    return Finding(
        text,
        f"The surroundings name {names}. Name objects by their masks (densevl regions, operator crop or cls_mask), or "
        "give the surroundings labels of their own with --background.",
    )
