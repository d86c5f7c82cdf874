"""Files about all images of a run, always made from the files of each image, so that a resumed run gives the same."""

from __future__ import annotations

import csv
import io
import math
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from densevl.drawing import contact_sheet, encode_sheet
from densevl.drawing.sheets import ENLARGED
from densevl.errors import OutputError
from densevl.files import CONFIDENCE_MARK
from densevl.images import read_image
from densevl.pipelines.folder.naming import given_folder
from densevl.pipelines.folder.sheet import key, without_legend
from densevl.pipelines.folder.storing import Local, Store
from densevl.pipelines.folder.tasks import REGIONS, Kind
from densevl.pipelines.folder.watch import Job
from densevl.regions.exports.base import twins
from densevl.regions.exports.kinds import EXPORTS, open_export
from densevl.regions.result import RegionResult
from densevl.results import SegmentationResult, photo_of

SHEET, SCORES = "contact_sheet.jpg", "scores.csv"
COLUMNS = ("image", "score", "is_anomalous", "map_max", "anomalous_share", "peak_x", "peak_y")
WIDTH, NARROWEST = 1600, 640  # of a sheet, in pixels
MOST = 200  # pictures on a sheet


class Results(Protocol):
    """A folder of results; see `densevl.pipelines.folder.loop.Folder`."""

    store: Store
    kind: Kind

    def content(self, job: Job) -> dict[str, Any]: ...

    def sense(self, job: Job) -> AbstractContextManager[None]: ...


class Gathered(ABC):
    """A file about all results. Attributes: file: its name, "" if there is none."""

    file: str

    def parts(self, jobs: Sequence[Job]) -> list[str]:
        """Return the names of further files, for each image."""
        return []

    @abstractmethod
    def write(self, results: Results, jobs: Sequence[Job]) -> list[str]:
        """Write the file, unless it already has this content.

        Raises:
            OutputError: If the file cannot be written.
        """


@dataclass(frozen=True)
class Sheet(Gathered):
    """Pictures of the results in one file of at most 1 MB.

    Attributes:
        picture: the extension of their files. columns: minimum per row. most: maximum number of pictures; if there are
            more, the last title says how many.
    """

    picture: str
    columns: int = 2
    most: int = MOST
    file = SHEET

    def write(self, results: Results, jobs: Sequence[Job]) -> list[str]:
        """See `Gathered`. Scored images are sorted with the most anomalous first."""
        scores: dict[Job, float | None] = {}
        for job in jobs if results.kind.use == "anomaly" else jobs[: self.most]:
            content = results.content(job)
            with results.sense(job):
                scores[job] = float(content["score"]) if content.get("score") is not None else None
        ranked = sorted(scores, key=lambda job: -(scores[job] or 0.0))[: self.most]
        count = len(ranked)
        columns = max(self.columns, count if count < 4 else min(10, math.ceil(math.sqrt(count))))
        pictures, titles, keys = [], [], []
        for job in ranked:
            content, data = results.content(job), results.store.read(f"{job.name}{self.picture}")
            with results.sense(job), Image.open(io.BytesIO(data)) as drawn:
                picture = without_legend(drawn, content)
                picture.thumbnail((WIDTH // columns, WIDTH // columns * 2))
                pictures.append(read_image(picture))
                keys.append(key(content))
            name, score = Path(job.image).name, scores[job]
            titles.append(name if score is None else f"{score:.3f}  {name}")
        if len(jobs) > count:
            titles[-1] = f"{count} of {len(jobs)}: {titles[-1]}"
        shown = min(columns, count)
        widest = math.ceil(shown * ENLARGED * max(picture.shape[1] for picture in pictures) / (1 - (shown + 1) / 64))
        sheet = contact_sheet(pictures, titles, columns, min(WIDTH, max(NARROWEST, widest)), keys)
        return [results.store.renew(self.file, encode_sheet(sheet))]


class Scores(Gathered):
    """A table of anomaly scores, with one row per image."""

    file = SCORES

    def write(self, results: Results, jobs: Sequence[Job]) -> list[str]:
        """See `Gathered`."""
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer)
        writer.writerow(COLUMNS)
        for job in jobs:
            content = results.content(job)
            with results.sense(job):
                verdict = "" if content["is_anomalous"] is None else str(content["is_anomalous"]).lower()
                share = f"{content['anomalous_share']:.6g}" if "anomalous_share" in content else ""
                image = job.image.encode(errors="backslashreplace").decode()
                largest, peak = content["map"]["max"], content["peak"]
                writer.writerow(
                    [image, f"{content['score']:.9g}", verdict, f"{largest:.9g}", share, peak["x"], peak["y"]]
                )
        return [results.store.renew(self.file, buffer.getvalue().encode())]


@dataclass(frozen=True)
class Export(Gathered):
    """Regions or label maps as one dataset.

    Attributes:
        kind: of `EXPORTS`. names: the classes. stuff: classes that are not things. overwrite: also replace edited
            files.
    """

    kind: str
    names: tuple[str, ...]
    stuff: Collection[str] = ()
    overwrite: bool = False

    def __post_init__(self) -> None:
        open_export(self.kind, ".", self.names, stuff=self.stuff)  # a wrong kind or name is refused now

    @property
    def file(self) -> str:  # type: ignore[override]
        """The file of the whole dataset, "" if there is none."""
        return EXPORTS[self.kind].file or ""

    def parts(self, jobs: Sequence[Job]) -> list[str]:
        """See `Gathered`."""
        one = EXPORTS[self.kind]
        own = [one.own_file(self._name(job)) for job in jobs if one.part]
        names, count = Counter(map(str.casefold, own)).most_common(1)[0] if own else ("", 0)
        if count > 1:
            raise OutputError(twins(names))
        return [*one.others, *own]

    def write(self, results: Results, jobs: Sequence[Job]) -> list[str]:
        """See `Gathered`."""
        if isinstance(results.store, Local):
            return list(map(str, self._into(results.store.path, results, jobs)))
        with tempfile.TemporaryDirectory() as temporary:
            self._into(Path(temporary), results, jobs)
            files = [path for path in sorted(Path(temporary).rglob("*")) if path.is_file()]
            names = [path.relative_to(temporary).as_posix() for path in files]
            return [results.store.renew(name, path.read_bytes()) for name, path in zip(names, files, strict=True)]

    def _name(self, job: Job) -> str:
        return EXPORTS[self.kind].name_of(job.image, given_folder(job.name), job.name)

    def _into(self, folder: Path, results: Results, jobs: Sequence[Job]) -> list[Path]:
        export = open_export(self.kind, folder, self.names, stuff=self.stuff, overwrite=self.overwrite)
        for job in jobs:
            content = results.content(job)
            with results.sense(job):
                if export.wants_photo:
                    photo = photo_of(content, None)
                else:
                    photo = np.zeros((content["size"]["height"], content["size"]["width"], 3), np.uint8)
                found = _result(results, job, content, photo)
            export.add(job.image, found, self._name(job))
        return export.close()


def _result(
    results: Results, job: Job, content: dict[str, Any], photo: np.ndarray
) -> RegionResult | SegmentationResult:
    """Read the result of an image from its files."""
    if results.kind == REGIONS:
        return RegionResult.of(content, photo)
    labels, confidence = (results.store.read(f"{job.name}{ending}") for ending in (".png", f"{CONFIDENCE_MARK}.png"))
    return SegmentationResult.of(content, labels, confidence, photo)
