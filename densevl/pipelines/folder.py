"""Many images to files: one bad image is named in the report, the others are done, and no input is ever overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from densevl.drawing import contact_sheet
from densevl.errors import ImageError, OutputError
from densevl.files import OVERLAY_MARK, atomic_write, unique_stems
from densevl.images import encode_png, read_image, resize
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.ensemble import Ensemble
from densevl.pipelines.segmentation.segmenter import Labels, Segmenter

SHEET, ERRORS = "contact_sheet", "errors.jsonl"
THUMBNAIL = 800  # longest side of an overlay that is kept for the contact sheet


@dataclass(frozen=True)
class Job:
    """One image and the label PNG it becomes."""

    image: Path
    target: Path


@dataclass
class Report:
    """What a run did: the jobs that were done, and image path to message of those that were not."""

    done: list[Job] = field(default_factory=list)
    errors: dict[Path, str] = field(default_factory=dict)


def plan_jobs(images: Sequence[Path], out: Path) -> list[Job]:
    """Name the outputs before anything is computed.

    Raises:
        ImageError: the only image does not exist.
        OutputError: `out` cannot be a folder, or an output would overwrite one of the images.
    """
    if len(images) == 1 and not images[0].is_file():
        read_image(images[0])  # raises with the cause
        raise ImageError(f"{images[0]} is not a file")
    existing = next((place for place in (out, *out.parents) if place.exists()), None)
    if existing is not None and not existing.is_dir():
        raise OutputError(f"{existing} is a file, so results cannot be written to {out}; name a folder")
    # The sheet's name is taken as if it were an image, so that no result gets it.
    stems = unique_stems([Path(SHEET), *images])[1:]
    jobs = [Job(image, out / f"{stem}.png") for image, stem in zip(images, stems, strict=True)]
    targets = [job.target for job in jobs]
    overlays = [target.with_name(f"{target.stem}{OVERLAY_MARK}.png") for target in targets]
    inputs = {image.resolve() for image in images}
    for path in (*targets, *overlays, out / f"{SHEET}.png"):
        if path.resolve() in inputs:
            raise OutputError(f"{path} is one of the images and would be overwritten; name another folder for results")
    return jobs


def segment_folder(
    segmenter: Segmenter | Ensemble | RegionClassifier,
    jobs: Sequence[Job],
    labels: Labels,
    *,
    sheet: bool = False,
    before: Callable[[Job], None] = lambda job: None,
    after: Callable[[Job, Any], None] = lambda job, result: None,
    failed: Callable[[Job, ImageError], None] = lambda job, error: None,
) -> Report:
    """Segment every job's image and write its files.

    Args:
        segmenter: the model; a `RegionClassifier` takes jobs whose targets are .json files.
        jobs: from `plan_jobs`; labels: as `Segmenter` takes them.
        sheet: also write contact_sheet.png with all overlays.
        before, after, failed: called for each job, for progress.

    Returns:
        The report. Bad images are also listed in errors.jsonl beside the results; a list left by an earlier run goes.

    Raises:
        OutputError: the disk refuses. LabelError, ProtocolError, ...: what is wrong with the whole run, at once.
    """
    report, thumbnails = Report(), []
    for job in jobs:
        before(job)
        try:
            result = segmenter(job.image, labels)
        except ImageError as error:
            report.errors[job.image] = str(error)
            failed(job, error)
            continue
        result.save(job.target)
        report.done.append(job)
        if sheet:
            thumbnails.append(_thumbnail(result.overlay()))
        after(job, result)
    if not jobs:
        return report
    folder = jobs[0].target.parent
    if thumbnails:
        titles = [job.image.name for job in report.done]
        atomic_write(folder / f"{SHEET}.png", encode_png(contact_sheet(thumbnails, titles)))
    if report.errors and report.done:
        rows = [json.dumps({"image": str(image), "error": text}) + "\n" for image, text in report.errors.items()]
        atomic_write(folder / ERRORS, "".join(rows).encode())
    elif not report.errors:
        (folder / ERRORS).unlink(missing_ok=True)
    return report


def _thumbnail(overlay: np.ndarray) -> np.ndarray:
    scale = THUMBNAIL / max(overlay.shape[:2])
    if scale >= 1:
        return overlay
    return resize(overlay, (max(1, round(overlay.shape[0] * scale)), max(1, round(overlay.shape[1] * scale))))
