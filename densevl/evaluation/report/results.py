"""The report of an evaluation: results.json, classes.csv, report.html, and confusion.csv of label maps, in one folder.

Everything that differs between two runs of one experiment (times, dates, how often it was resumed) is under "run"; the
rest is byte for byte the same, whatever the number of processes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from densevl import __version__
from densevl.evaluation.experiment import AnyPredictor
from densevl.evaluation.report.page import Example, page
from densevl.evaluation.runner import Outcome
from densevl.evaluation.tasks import NOTHING
from densevl.files import atomic_write_all

SHOWN = 4
"""Best and worst images that the page shows."""
_PACKAGES = ("torch", "open_clip_torch", "timm", "numpy", "pillow")


def results(outcome: Outcome) -> dict[str, Any]:
    """Everything an evaluation found, ready for JSON; shares are 0..1, None where undefined."""
    experiment, dataset, task = outcome.experiment, outcome.dataset, outcome.task
    paper = experiment.published
    own = task.facts(outcome.counts)
    protocol = {name: text for name, text in {**own.pop("protocol"), "note": dataset.note}.items() if text}
    facts = {
        "title": f"{outcome.used.get('recipe') or outcome.used.get('model')} on {dataset.name}",
        "task": experiment.task,
        "headline": task.headline,
        "measures": outcome.summary,
        "paper": {task.headline: None if paper is None else paper / 100},
        "delta": {task.headline: None if paper is None else outcome.summary[task.headline] - paper / 100},
        "classes": task.class_rows(outcome.counts, outcome.kept),
        "bars": task.column,
        "images": [
            {"image": item.key, "score": float(value)}
            for item, value in zip(dataset.items, outcome.ranking, strict=True)
        ],
        **own,
        "protocol": protocol,
        "used": outcome.used,
        "experiment": experiment.facts(),
        "fingerprint": experiment.fingerprint(dataset),
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


def examples(outcome: Outcome, predictor: AnyPredictor, shown: int = SHOWN) -> tuple[list[Example], list[Example]]:
    """The worst and the best images by their own scores, predicted again."""
    order = np.argsort(outcome.ranking, kind="stable")
    order = order[~np.isnan(outcome.ranking[order])]
    count = min(shown, len(order) // 2 or len(order))

    def look(index: int) -> Example:
        sample = outcome.dataset[index]
        truth, found = outcome.task.pictures(sample, outcome.task.predict(predictor, sample))
        return Example(sample.item.key, float(outcome.ranking[index]), sample.image, truth, found)

    return [look(int(i)) for i in order[:count]], [look(int(i)) for i in order[::-1][:count]]


def write(outcome: Outcome, folder: str | Path, predictor: AnyPredictor | None = None) -> list[Path]:
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
    matrix = outcome.counts.get("iou")
    files = {
        "report.html": page(facts, matrix, names, worst, best).encode(),
        "results.json": (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode(),
        "classes.csv": _csv([list(facts["classes"][0]), *(row.values() for row in facts["classes"])]),
    }
    if matrix is not None:
        rows = ([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
        files["confusion.csv"] = _csv([["truth \\ found", *names], *rows])
    return atomic_write_all({Path(folder) / name: content for name, content in files.items()})


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
