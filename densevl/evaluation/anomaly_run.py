"""Anomaly benchmarks: every category by itself, then the plain mean of categories.

Pixels of all test images of a category are pooled, flawless ones too, by streaming histograms of raw scores; maps are
judged at the size of the image. See `densevl.evaluation.metrics.anomaly` for the measures.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import EvaluationError
from densevl.evaluation.benchmarks.anomaly import AnomalyItem, AnomalySet
from densevl.evaluation.metrics.anomaly import AnomalyMetrics
from densevl.files import atomic_write_all
from densevl.images import read_image

Picture = npt.NDArray[np.uint8]
Judge = Callable[[Picture], tuple[npt.NDArray[np.floating[Any]], float]]
"""An uint8 RGB image to its map (H, W) and its score, both raw, larger for worse."""
Teacher = Callable[[str, Sequence[AnomalyItem]], Judge]
"""A category's name and the flawless images it may learn from, to a judge of it."""
COLUMNS = ("image_auroc", "image_ap", "image_f1", "pixel_auroc", "pixel_ap", "pixel_f1", "aupro")


def detectors(model: str = "auto", **settings: Any) -> Teacher:
    """A teacher that makes an `AnomalyDetector` a category, named after it, all on one loaded model.

    Args:
        model: as `load_backbone` takes it; settings: further ones of `AnomalyDetector`, such as scoring="winclip".
    """
    from densevl.backbones import load_backbone
    from densevl.pipelines.anomaly.detector import AnomalyDetector

    backbone = load_backbone(model)

    def teach(category: str, references: Sequence[AnomalyItem]) -> Judge:
        detector = AnomalyDetector(backbone, item=category.replace("_", " "), **settings)
        if references:
            detector = detector.fit([item.image for item in references])

        def judge(rgb: Picture) -> tuple[npt.NDArray[np.floating[Any]], float]:
            result = detector(rgb)
            return result.map, result.score

        return judge

    return teach


def evaluate_anomaly(
    dataset: AnomalySet, teach: Teacher, *, shots: int = 0, show: Callable[[str, int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Judge every category.

    Args:
        dataset: of `open_anomaly`; teach: makes the judge of a category.
        shots: so many flawless training images, the first by name, are handed to `teach`.
        show: told the category, images done and images in all.

    Returns:
        A row a category, with its references' names, and last their plain mean; shares 0..1.

    Raises:
        EvaluationError: fewer training images than shots. DatasetError: a mask is missing or of another size.
    """
    rows: list[dict[str, Any]] = []
    for category in dataset.categories:
        part = dataset.of(category)
        if shots > len(part.train):
            raise EvaluationError(f"{shots} shots asked for and '{category}' has {len(part.train)} flawless images")
        known = sorted(part.train, key=lambda item: item.image.name)[:shots]
        judge, metrics = teach(category, known), AnomalyMetrics()
        for number, item in enumerate(part.test):
            rgb = read_image(item.image)
            found, score = judge(rgb)
            if found.shape != rgb.shape[:2]:
                raise EvaluationError(f"the map of {item.image.name} is {found.shape}, its image {rgb.shape[:2]}")
            metrics.update(found, item.read_mask(rgb.shape[:2]), score)
            if show is not None:
                show(category, number + 1, len(part.test))
        values = metrics.compute()
        rows.append({"category": category, **{name: values[name] for name in COLUMNS}})
        rows[-1] |= {"images": len(part.test), "references": " ".join(item.image.name for item in known)}
    mean = {name: float(np.nanmean([row[name] for row in rows])) for name in COLUMNS}
    total = {"images": sum(row["images"] for row in rows), "references": ""}
    return [*rows, {"category": "mean", **mean, **total}]


def write(rows: Sequence[dict[str, Any]], folder: str | Path, facts: dict[str, Any]) -> list[Path]:
    """Write anomaly.json (with `facts`, on how it was made), anomaly.csv and anomaly.md; returns the paths."""
    plain = [{key: None if _missing(value) else value for key, value in row.items()} for row in rows]
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(plain)
    return atomic_write_all(
        {
            Path(folder) / "anomaly.json": (json.dumps({**facts, "rows": plain}, indent=1) + "\n").encode(),
            Path(folder) / "anomaly.csv": text.getvalue().encode(),
            Path(folder) / "anomaly.md": markdown(rows).encode(),
        }
    )


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table in per cent."""
    lines = [f"| category | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        cells = ("-" if _missing(row[name]) else f"{100 * row[name]:.1f}" for name in COLUMNS)
        lines.append(f"| {row['category']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _missing(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
