"""Degraded photos: how much accuracy is lost, and whether the confidence shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from densevl.errors import EvaluationError
from densevl.evaluation.analyses.base import (
    Analysis,
    Chart,
    Finding,
    Row,
    Show,
    each,
    is_labelled,
    percent,
    points,
    reference,
)
from densevl.evaluation.benchmarks.base import Dataset
from densevl.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from densevl.evaluation.metrics.calibration import UNIT, calibration, calibration_counts
from densevl.evaluation.metrics.confusion import confusion, measures
from densevl.evaluation.predictors import Predictor

DROP, OVER = 0.1, 0.1
"""How far mIoU may fall, and how far confidence may exceed accuracy, before advice is given."""


class _Tally:
    """Counts for one corruption and severity."""

    def __init__(self, classes: int) -> None:
        self.matrix = np.zeros((classes + 1, classes + 1), np.int64)
        self.bins: Any = 0

    def add(self, truth: Any, found: Any, classes: int) -> None:
        self.matrix += confusion(truth, found.labels, classes)
        self.bins = self.bins + calibration_counts(truth, found.labels, found.confidence)

    def measured(self) -> dict[str, float]:
        pixels, sums, right = (int(part.sum()) for part in self.bins)
        table, inside = measures(self.matrix), max(1, pixels)
        nothing = {"ECE": float("nan"), "confidence": float("nan"), "accuracy": float("nan")}
        own = {"ECE": calibration(self.bins)["ECE"], "confidence": sums / UNIT / inside, "accuracy": right / inside}
        return {"mIoU": table["mIoU"], "same answer": table["aAcc"], **(own if pixels else nothing)}


def corruption_robustness(
    predictor: Predictor,
    dataset: Dataset,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = (1, 3, 5),
    *,
    seed: int = 0,
    show: Show | None = None,
) -> Analysis:
    """Measure mIoU, calibration error and confidence on degraded photos; severity 0 is the original photo.

    Without labels, measure the share of pixels that keep the original photo's answer, and the confidence.

    Raises:
        EvaluationError: a corruption or severity is unknown.
    """
    for severity in severities:
        if severity not in SEVERITIES:
            raise EvaluationError(f"severity {severity} is none of {SEVERITIES[0]} to {SEVERITIES[-1]}")
    classes, labelled = len(dataset.names), is_labelled(dataset)
    clean = _Tally(classes)
    worse = {(name, severity): _Tally(classes) for name in corruptions for severity in severities}
    for number, sample in enumerate(each(dataset, show, "corruption")):
        found = predictor(sample.image)
        truth = reference(sample, found.labels, classes)
        clean.add(truth, found, classes)
        for (name, severity), own in worse.items():
            own.add(truth, predictor(corrupt(sample.image, name, severity, seed + number)), classes)
    kept = ("mIoU", "accuracy", "confidence", "ECE") if labelled else ("same answer", "confidence")

    def row(name: str, severity: int, own: _Tally) -> Row:
        table = own.measured()
        return {"corruption": name, "severity": severity, **{key: table[key] for key in kept}}

    first = row("none", 0, clean)
    rows = [first, *(row(name, severity, own) for (name, severity), own in worse.items())]
    charts = [_chart(rows, key, corruptions) for key in kept if key != "accuracy"]
    text = (
        "Measures by severity of the corruption. Confidence is the mean over pixels that got a label; ECE says how far "
        "it is from the share of them that is right."
        if labelled
        else "Share of pixels that keep the answer to the photo itself, and mean confidence, by severity."
    )
    findings = [_lost(rows, kept[0]), *([_overconfident(rows)] if labelled else [])]
    return Analysis("Corruption robustness", text, {"": rows}, charts, findings)


def _chart(rows: Sequence[Row], key: str, corruptions: Sequence[str]) -> Chart:
    series = {
        name: [(float(row["severity"]), float(row[key])) for row in rows if row["corruption"] in ("none", name)]
        for name in corruptions
    }
    return Chart(series, "severity", key)


def _lost(rows: Sequence[Row], key: str) -> Finding:
    """The loss at the middle severity, for the corruption that costs most."""
    middle = sorted({int(row["severity"]) for row in rows[1:]})[len({row["severity"] for row in rows[1:]}) // 2]
    worst = min((row for row in rows if row["severity"] == middle), key=lambda row: float(row[key]))
    lost = float(rows[0][key]) - float(worst[key])
    name = str(worst["corruption"])
    change = f"{percent(float(rows[0][key]))} to {percent(float(worst[key]))}"
    text = f"'{name}' of severity {middle} costs most: {key} {change} (threshold {points(-DROP)})."
    return Finding(text, _REMEDY[name] if lost > DROP else "")


_REMEDY = {
    "noise": "Try a median filter before segmenting such photos, or --views flip+scale.",
    "blur": "Keep such photos out, by a measure of sharpness, or try feeding them smaller (--short-side).",
    "contrast": "Try stretching the contrast of flat photos first, by their darkest and lightest pixels.",
    "dark": "Try brightening dark photos first, each by its own histogram.",
    "jpeg": "Keep photos at a JPEG quality of 40 or more, or as PNG.",
    "pixelate": "Take photos at their full size: enlarged ones show blocks.",
}
"""By the strengths of `corruptions`: JPEG of severity 1 has quality 40."""


def _overconfident(rows: Sequence[Row]) -> Finding:
    gaps = [(float(row["confidence"]) - float(row["accuracy"]), row) for row in rows]
    gap, worst = max((pair for pair in gaps if pair[0] == pair[0]), key=lambda pair: pair[0], default=(0.0, rows[0]))
    where = f"'{worst['corruption']}' of severity {worst['severity']}" if worst["severity"] else "photos as they are"
    text = f"Confidence is {points(gaps[0][0])} from accuracy on the photos as they are, "
    if gap <= OVER:
        lowest = min(gap for gap, _ in gaps if gap == gap) if any(gap == gap for gap, _ in gaps) else float("nan")
        return Finding(f"{text}and {points(lowest)} to {points(gap)} on worse ones (threshold {points(OVER)}).")
    text += f"and at most {points(gap)}, on {where} (threshold {points(OVER)})."
    if gaps[0][0] > OVER:
        return Finding(
            text, "Confidence is too high everywhere: lower the logit scale (--set protocol.logit_scale=...)."
        )
    return Finding(text, "Do not take confidence as a sign of bad photos: sort these out by sharpness or brightness.")
