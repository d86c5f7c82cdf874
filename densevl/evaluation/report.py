"""The report of an evaluation: results.json, classes.csv, confusion.csv and report.html, in one folder.

Everything that differs between two runs of one experiment (times, dates, how often it was resumed) is under "run"; the
rest is byte for byte the same, whatever the number of processes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl import __version__
from densevl.evaluation import measuring
from densevl.evaluation.calibration import calibration
from densevl.evaluation.confusion import confused
from densevl.evaluation.page import page
from densevl.evaluation.predicting import Predictor
from densevl.evaluation.runner import Outcome
from densevl.files import atomic_write_all

SHOWN = 4
"""Best and worst images that the page shows."""
NOTHING = "nothing"
_PACKAGES = ("torch", "open_clip_torch", "timm", "numpy", "pillow")


@dataclass(frozen=True, eq=False)
class Example:
    """Attributes: key of an image; miou 0..1; image uint8 (H, W, 3); truth, found int16 (H, W)."""

    key: str
    miou: float
    image: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.int16]
    found: npt.NDArray[np.int16]


def results(outcome: Outcome) -> dict[str, Any]:
    """Everything an evaluation found, ready for JSON; shares are 0..1, None where undefined."""
    experiment, dataset = outcome.experiment, outcome.dataset
    names, counts = (*dataset.names, NOTHING), outcome.counts
    paper = experiment.published
    ours = outcome.summary["mIoU"]
    facts = {
        "title": f"{outcome.used.get('recipe') or outcome.used.get('model')} on {dataset.name}",
        "measures": outcome.summary,
        "paper": {"mIoU": None if paper is None else paper / 100},
        "delta": {"mIoU": None if paper is None else ours - paper / 100},
        "classes": measuring.class_rows(counts, dataset.names),
        "confused": [
            {"truth": names[row], "found": names[column], "pixels": pixels}
            for row, column, pixels in confused(counts["iou"])
        ],
        "calibration": calibration(counts["calibration"])["bins"] if "calibration" in counts else None,
        "images": [
            {"image": item.key, "mIoU": float(value)}
            for item, value in zip(dataset.items, outcome.ranking, strict=True)
        ],
        "protocol": {
            "aggregation": "counts over all images, divided once; undefined classes left out of means",
            "resolution": "labels decided at the image's own size; labels never resized",
            "ignored": "pixels that the label rule maps to no class",
            "boundary": f"{experiment.boundary_ratio:g} of the diagonal",
            "calibration": "15 bins of equal width, scored pixels that got a class",
            "note": dataset.note,
        },
        "used": outcome.used,
        "experiment": experiment.facts(),
        "fingerprint": experiment.fingerprint(dataset),
        "pixels": int(counts["iou"].sum()),
        "versions": {"densevl": __version__, "python": platform.python_version(), **_versions()},
        "run": {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "images": outcome.images,
            "resumed": outcome.resumed,
            "seconds": round(outcome.seconds, 3),
            "parts": {name: round(seconds, 3) for name, seconds in outcome.parts.items()},
        },
    }
    return _plain(facts)


def examples(outcome: Outcome, predictor: Predictor, shown: int = SHOWN) -> tuple[list[Example], list[Example]]:
    """The worst and the best images by mIoU, predicted again."""
    order = np.argsort(outcome.ranking, kind="stable")
    order = order[~np.isnan(outcome.ranking[order])]
    count = min(shown, len(order) // 2 or len(order))

    def look(index: int) -> Example:
        sample = outcome.dataset[index]
        found = predictor(sample.image)
        return Example(sample.item.key, float(outcome.ranking[index]), sample.image, sample.truth, found.labels)

    return [look(int(i)) for i in order[:count]], [look(int(i)) for i in order[::-1][:count]]


def write(outcome: Outcome, folder: str | Path, predictor: Predictor | None = None) -> list[Path]:
    """Write the report.

    Args:
        outcome: of `run`; folder: made if absent; predictor: shows the best and worst images, None leaves them out.

    Returns:
        The paths written: report.html first.

    Raises:
        OutputError: the folder cannot be written.
    """
    facts = results(outcome)
    worst, best = examples(outcome, predictor) if predictor is not None else ([], [])
    names = (*outcome.dataset.names, NOTHING)
    matrix = outcome.counts["iou"]
    return atomic_write_all(
        {
            Path(folder) / "report.html": page(facts, matrix, names, worst, best).encode(),
            Path(folder) / "results.json": (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode(),
            Path(folder) / "classes.csv": _csv(
                [list(facts["classes"][0]), *(row.values() for row in facts["classes"])]
            ),
            Path(folder) / "confusion.csv": _csv(
                [["truth \\ found", *names], *([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))]
            ),
        }
    )


def _csv(rows: list[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    """JSON has no NaN: None instead."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 8)
    return value if isinstance(value, str | int | bool) or value is None else str(value)
