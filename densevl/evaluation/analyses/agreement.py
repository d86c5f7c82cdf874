"""Agreement between views of the same photo: pixels whose label changes are less reliable. Needs no labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from densevl.evaluation.analyses.base import Analysis, Finding, Labels, Picture, Row, Show, each, is_labelled, percent
from densevl.evaluation.analyses.objects import same_size
from densevl.evaluation.benchmarks.base import Dataset
from densevl.evaluation.metrics.confusion import confusion, measures
from densevl.pipelines.feeding import PLANS

VIEWS = ("flip", "flip+scale")
STEADY, GAIN = 0.9, 0.01
"""Share of pixels that should keep their label in every view, and the mIoU gain that makes an option worth advising."""
SHIFT = 0.04
"""Fraction of the short side."""


def view_agreement(predictor: Any, dataset: Dataset, *, show: Show | None = None) -> Analysis:
    """Measure how many pixels keep their label when the photo is mirrored, scaled, shifted, or run with other options.

    Args:
        predictor: `Predictor`; one without `with_options` has no options.
    """
    classes, labelled = len(dataset.names), is_labelled(dataset)
    looks: dict[str, Callable[[Picture], Labels]] = {
        "mirrored": lambda rgb: predictor(np.ascontiguousarray(rgb[:, ::-1])).labels[:, ::-1],
        "three quarters of the size": lambda rgb: _scaled(predictor, rgb, 0.75),
        "four thirds of the size": lambda rgb: _scaled(predictor, rgb, 4 / 3),
        "shifted": lambda rgb: _shifted(predictor, rgb),
    }
    views = len(looks)
    for option, values in (("plan", PLANS), ("views", VIEWS)) if hasattr(predictor, "with_options") else ():
        for value in values:
            other = predictor.with_options(**{option: value})
            looks[f"--{option} {value}"] = partial(_labels, other)
    same = np.zeros(len(looks), np.int64)
    matrices = np.zeros((1 + len(looks), classes + 1, classes + 1), np.int64)
    agreed = np.zeros((2, 2), np.int64)  # whether views agree: scored pixels, and correct ones
    pixels = steady = 0
    for sample in each(dataset, show, "agreement"):
        plain = predictor(sample.image).labels
        pixels += plain.size
        unmoved = np.ones(plain.shape, bool)
        matrices[0] += confusion(sample.truth, plain, classes)
        for at, look in enumerate(looks.values()):
            found = look(sample.image)
            alike = found == plain
            same[at] += int(alike.sum())
            matrices[at + 1] += confusion(sample.truth, found, classes)
            if at < views:
                unmoved &= alike
        steady += int(unmoved.sum())
        for kind, here in enumerate((unmoved, ~unmoved)):
            scored = here & (sample.truth >= 0)
            agreed[kind] += int(scored.sum()), int((scored & (plain == sample.truth)).sum())
    rows: list[Row] = [{"view": name, "same label": float(same[at] / pixels)} for at, name in enumerate(looks)]
    rows.insert(0, {"view": "as it is", "same label": 1.0})
    if labelled:
        for row, matrix in zip(rows, matrices, strict=True):
            row["mIoU"] = measures(matrix)["mIoU"]
    tables = {"": rows}
    if labelled:
        tables["where the views differ"] = [
            {"pixels": name, "share": float(count / max(1, agreed[:, 0].sum())), "right": float(right / max(1, count))}
            for name, (count, right) in zip(("all views agree", "some view differs"), agreed, strict=True)
        ]
    text = (
        "Share of pixels that keep the label they have in the original photo, in other views of it, and with other "
        "plans of windows or averaged views."
    )
    return Analysis(
        "Agreement of views", text, tables, findings=_findings(rows, steady / pixels, agreed, labelled, views)
    )


def _labels(predictor: Any, rgb: Picture) -> Labels:
    found: Labels = predictor(rgb).labels
    return found


def _scaled(predictor: Any, rgb: Picture, scale: float) -> Labels:
    height, width = rgb.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
    return same_size(predictor(picture).labels, (height, width))


def _shifted(predictor: Any, rgb: Picture) -> Labels:
    by = max(1, round(SHIFT * min(rgb.shape[:2])))
    return np.asarray(predictor(np.pad(rgb, ((by, 0), (by, 0), (0, 0)), mode="edge")).labels[by:, by:])


def _findings(rows: list[Row], steady: float, agreed: Any, labelled: bool, views: int) -> list[Finding]:
    text = f"{percent(steady)} of the pixels keep their label in every view (threshold {percent(STEADY)})."
    if labelled and agreed[:, 0].all():
        shares = agreed[:, 1] / agreed[:, 0]
        text += f" Of these {percent(float(shares[0]))} are right, of the others {percent(float(shares[1]))}."
    advice = "Check answers by hand where views differ." if steady < STEADY else ""
    found = [Finding(text, advice)]
    options = rows[1 + views :]
    if labelled and options:
        best = max(options, key=lambda row: float(row["mIoU"]))
        gain = float(best["mIoU"]) - float(rows[0]["mIoU"])
        sentence = f"Of plans and views, {best['view']} has the best mIoU, {100 * float(best['mIoU']):.1f} against "
        sentence += f"{100 * float(rows[0]['mIoU']):.1f} as asked (threshold {100 * GAIN:+.0f})."
        found.append(Finding(sentence, f"Take {best['view']}." if gain > GAIN else ""))
    return found
