"""Anomaly scores of many images to files: one bad image is named in the report, and no input is ever overwritten."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from densevl.anomaly.result import AnomalyResult
from densevl.drawing import contact_sheet
from densevl.errors import ImageError
from densevl.files import atomic_write
from densevl.images import encode_png, resize
from densevl.pipelines.anomaly.detector import AnomalyDetector
from densevl.pipelines.folder import ERRORS, SHEET, THUMBNAIL, Job, plan_jobs

TABLE = "scores.csv"
COLUMNS = ("image", "score", "is_anomalous", "map_max", "anomalous_share", "peak_x", "peak_y")


@dataclass(frozen=True)
class Row:
    """One scored image.

    Attributes:
        score: raw. is_anomalous, anomalous_share: None without thresholds. peak: (x, y) pixel of the largest value.
    """

    job: Job
    score: float
    is_anomalous: bool | None
    map_max: float
    anomalous_share: float | None
    peak: tuple[float, float]


@dataclass
class AnomalyReport:
    """What a run did: a row for each image that was scored, and image path to message of those that were not."""

    rows: list[Row] = field(default_factory=list)
    errors: dict[Path, str] = field(default_factory=dict)

    @property
    def ranked(self) -> list[Row]:
        """The rows, most anomalous first."""
        return sorted(self.rows, key=lambda row: -row.score)


def score_folder(
    detector: AnomalyDetector,
    images: Sequence[Path],
    out: Path,
    *,
    sheet: bool = False,
    before: Callable[[Job], None] = lambda job: None,
    after: Callable[[Row, AnomalyResult], None] = lambda row, result: None,
    failed: Callable[[Job, ImageError], None] = lambda job, error: None,
) -> AnomalyReport:
    """Score images and write, for each, its heat map (PNG), its numbers (JSON) and its raw map (NPY), and one table.

    Args:
        images: files, as `densevl.images.list_images` gives them. out: the folder for results.
        sheet: also write contact_sheet.png with all heat maps, most anomalous first.
        before, after, failed: called for each image, for progress.

    Returns:
        The report; scores.csv holds its rows. Bad images are listed in errors.jsonl; an earlier such list goes.

    Raises:
        ImageError: the only image does not exist. OutputError: an output would overwrite an image, or the disk refuses.
        ModelError: the detector needs normal images and has none.
    """
    report = AnomalyReport()
    thumbnails: dict[Job, np.ndarray] = {}
    for job in plan_jobs(images, out):
        before(job)
        try:
            result = detector(job.image)
        except ImageError as error:
            report.errors[job.image] = str(error)
            failed(job, error)
            continue
        result.save(job.target)
        row = _row(job, result)
        report.rows.append(row)
        if sheet:
            thumbnails[job] = _thumbnail(result.heat())
        after(row, result)
    if report.rows:
        atomic_write(out / TABLE, _table(report.rows))
    if thumbnails:
        ranked = report.ranked
        titles = [f"{row.job.image.name}  {row.score:.3f}" for row in ranked]
        picture = contact_sheet([thumbnails[row.job] for row in ranked], titles, columns=4)
        atomic_write(out / f"{SHEET}.png", encode_png(picture))
    if report.errors and report.rows:
        rows = [json.dumps({"image": str(image), "error": text}) + "\n" for image, text in report.errors.items()]
        atomic_write(out / ERRORS, "".join(rows).encode())
    elif not report.errors:
        (out / ERRORS).unlink(missing_ok=True)
    return report


def _row(job: Job, result: AnomalyResult) -> Row:
    facts = result.facts()
    return Row(
        job,
        result.score,
        result.is_anomalous,
        facts["map"]["max"],
        facts.get("anomalous_share"),
        (facts["peak"]["x"], facts["peak"]["y"]),
    )


def _table(rows: Sequence[Row]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for row in rows:
        verdict = "" if row.is_anomalous is None else str(row.is_anomalous).lower()
        share = "" if row.anomalous_share is None else f"{row.anomalous_share:.6g}"
        image = str(row.job.image).encode(errors="backslashreplace").decode()
        writer.writerow([image, f"{row.score:.9g}", verdict, f"{row.map_max:.9g}", share, *row.peak])
    return buffer.getvalue().encode()


def _thumbnail(picture: np.ndarray) -> np.ndarray:
    scale = THUMBNAIL / max(picture.shape[:2])
    if scale >= 1:
        return picture
    return resize(picture, (max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale))))
