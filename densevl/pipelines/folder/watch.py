"""Progress of a run over many images (`Watch`), and the report at its end (`Report`). Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PACKED = (".tar", ".parquet")
"""Extensions of --out that pack the results of many images in few files; see `packing`."""


@dataclass(frozen=True)
class Job:
    """One image and the name of its results, relative to their folder, without extension."""

    image: str
    name: str


class Watch:
    """Receives the progress of a run. This base class ignores it.

    Attributes:
        wants_content: whether `done` receives the JSON of each result, which takes a moment to read.
    """

    wants_content = False

    def begin(self, total: int, finished: int) -> None:
        """Called at the start with the number of images, and of those finished before."""

    def found(self, job: Job, content: dict[str, Any]) -> None:
        """Called with the JSON of an image that was done before, if content is wanted."""

    def part(self, job: Job, share: float) -> None:
        """Called with the share of an image that is done, 0 to 1, for images that take long."""

    def done(self, job: Job, result: Any, content: dict[str, Any]) -> None:
        """Called when an image is done, with its result (None if done on another machine) and its JSON, if wanted."""

    def failed(self, job: Job, error: str) -> None:
        """Called with a bad image."""

    def end(self) -> None:
        """Called when all images are through, or the run is interrupted."""


@dataclass
class Report:
    """The outcome of a run.

    Attributes:
        done: the images that have results. fresh: how many of them were computed in this run. errors: message by
            image. places: the folder or the archives, and the files about all images. listed: the file that lists bad
            images. seconds: the duration.
    """

    done: list[Job] = field(default_factory=list)
    fresh: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    listed: str = ""
    seconds: float = 0.0
