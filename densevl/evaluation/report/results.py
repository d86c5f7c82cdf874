"""The report of an evaluation: results.json, classes.csv, report.html, and confusion.csv for label maps, in one folder.

Everything that differs between two runs of one experiment (times, dates, how often it was resumed) is under "run". The
rest is byte for byte the same, whatever the number of processes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.evaluation.outcome import Outcome, versions
from densevl.evaluation.report.page import page
from densevl.evaluation.tasks.semantic import NOTHING
from densevl.files import atomic_write_all, guard, is_own, json_text, unwritten

FILES = ("results.json", "report.html", "classes.csv", "confusion.csv")
SHOWN = 4
"""Number of best and of worst images on the page."""
_HEAT_CLASSES = 64
"""The largest confusion matrix that is drawn."""
_EXPLAINED = {
    "mIoU": "mean intersection over union",
    "aAcc": "share of scored pixels that are right",
    "mAcc": "mean over classes of the share found",
    "mDice": "mean Dice coefficient",
    "fwIoU": "IoU weighted by how frequent a class is",
    "boundary mIoU": "mean IoU of outlines",
    "ECE": "expected calibration error",
    "MCE": "largest calibration error of a bin",
    "unassigned": "scored pixels that got no class",
    "cS": "S-measure, 0 where the class is wrong, as all that follow",
    "cFw": "weighted F-measure",
    "cMAE": "mean absolute error, 1 where the class is wrong",
    "right class": "images whose class was found",
    "AP": "mean average precision, IoU .50 to .95",
    "AP50": "average precision at IoU .50",
    "AP75": "average precision at IoU .75",
    "R50": "share of objects met by a detection of their class",
    "PQ": "panoptic quality: SQ times RQ in each class",
    "SQ": "mean IoU of matched segments",
    "RQ": "F1 score of segments",
    "image_auroc": "area under the ROC curve of images, mean over categories, as all that follow",
    "image_ap": "average precision of images",
    "image_f1": "largest F1 score of images over all thresholds",
    "pixel_auroc": "area under the ROC curve of pixels",
    "pixel_auroc_error": "largest possible error of a category's pixel_auroc, if its pixels are too many to be kept",
    "pixel_ap": "average precision of pixels",
    "pixel_f1": "largest F1 score of pixels over all thresholds",
    "aupro": "overlap with each damage, over thresholds with at most 30 % false alarms",
}


@dataclass(frozen=True, eq=False)
class Example:
    """Attributes: key of an image; score 0..1; pictures, titles and uint8 RGB (H, W, 3), the photo first."""

    key: str
    score: float
    pictures: Sequence[tuple[str, npt.NDArray[np.uint8]]]


def results(outcome: Outcome) -> dict[str, Any]:
    """All results of an evaluation, ready for JSON; shares are 0..1, None where undefined."""
    experiment, dataset, task = outcome.experiment, outcome.dataset, outcome.task
    paper = experiment.published
    own = task.facts(outcome.counts)
    used = dict(outcome.used)
    protocol = {name: text for name, text in {**own.pop("protocol"), "note": dataset.note}.items() if text}
    facts = {
        "title": f"{used.get('recipe') or used.get('model')} on {dataset.name}",
        "versions": versions(),
        "warnings": list(dict.fromkeys([*used.pop("warnings", []), *task.look.warnings, *outcome.warnings])),
        "first_look": {"seen": task.look.text, **task.look.facts},
        "task": experiment.task,
        "headline": task.headline,
        "measures": outcome.summary,
        "n/a": outcome.undefined,
        "paper": {task.headline: None if paper is None else paper / 100},
        "delta": {task.headline: None if paper is None else outcome.summary[task.headline] - paper / 100},
        "classes": outcome.rows,
        "bars": task.column,
        "images": [
            {"image": item.key, "score": float(value)}
            for item, value in zip(dataset.items, outcome.ranking, strict=True)
        ],
        **own,
        "protocol": protocol,
        "used": used,
        "experiment": experiment.facts(),
        "fingerprint": outcome.fingerprint,
        "run": {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "images": outcome.images,
            "resumed": outcome.resumed,
            "seconds": round(outcome.seconds, 3),
            "parts": {name: round(seconds, 3) for name, seconds in outcome.parts.items()},
        },
    }
    plain: dict[str, Any] = as_plain(facts)
    return plain


def examples(outcome: Outcome, predictor: Any, shown: int = SHOWN) -> tuple[list[Example], list[Example]]:
    """The worst and the best images by their own scores, predicted again."""
    order = np.argsort(outcome.ranking, kind="stable")
    order = order[~np.isnan(outcome.ranking[order])]
    count = min(shown, len(order) // 2 or len(order))

    def look(index: int) -> Example:
        sample = outcome.dataset[index]
        pictures = outcome.task.pictures(sample, outcome.task.predict(predictor, sample))
        return Example(sample.item.key, float(outcome.ranking[index]), pictures)

    return [look(int(i)) for i in order[:count]], [look(int(i)) for i in order[::-1][:count]]


def claim(folder: str | Path, first: str, *others: str, overwrite: bool = False) -> None:
    """Refuse a folder that has somebody else's files of these names; the first name tells whose they are.

    Raises:
        OutputError: the folder is a file, or there are such files and `overwrite` is False.
    """
    path = Path(folder, first)
    if any(above.is_file() for above in path.parents):
        raise unwritten(path, NotADirectoryError())
    guard([path] if is_own(path) else [path, *(Path(folder, name) for name in others)], overwrite=overwrite)


def write(outcome: Outcome, folder: str | Path, predictor: Any | None = None) -> list[Path]:
    """Write the report.

    Args:
        outcome: of `run`; folder: created if absent; predictor: shows the best and worst images, None leaves them out.

    Returns:
        The paths written: report.html first.

    Raises:
        OutputError: the folder cannot be written.
    """
    facts = results(outcome)
    worst, best = examples(outcome, predictor) if predictor is not None else ([], [])
    names = (*outcome.dataset.names, NOTHING)
    more = {
        "bar_rows": [(row["class"], row[facts["bars"]]) for row in facts["classes"]],
        "times": _times(facts["run"]),
        "heat_classes": _HEAT_CLASSES,
        "facts_of_classes": {name: facts.get(name) for name in ("classes never found", "classes not in the truth")},
        "explained": _EXPLAINED,
        "undefined": outcome.undefined,
    }
    matrix = outcome.counts.get("iou")
    files = {
        "report.html": page("results", **facts, **more, matrix=matrix, names=names, worst=worst, best=best),
        "results.json": (json_text(facts, indent=1, ensure_ascii=False) + "\n").encode(),
        "classes.csv": as_csv([list(facts["classes"][0]), *(row.values() for row in facts["classes"])]),
    }
    if matrix is not None:
        rows = ([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
        files["confusion.csv"] = as_csv([["truth \\ found", *names], *rows])
    return atomic_write_all({Path(folder) / name: content for name, content in files.items()})


def _times(run: dict[str, Any]) -> dict[str, Any]:
    each = f"{1000 * run['seconds'] / run['images']:.1f} ms" if run["images"] else "none done in this run"
    parts = {f"of it: {name}": f"{seconds:.2f} s" for name, seconds in run["parts"].items()}
    own = {"finished": run["finished"], "images": run["images"], "done by earlier runs": run["resumed"]}
    return {**own, "seconds": f"{run['seconds']:.2f} s, {each} an image", **parts}


def as_csv(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def as_plain(value: Any) -> Any:
    """Replace NaN by None, since JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): as_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 8) if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool) or value is None else str(value)
