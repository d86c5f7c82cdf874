"""What is told of a run over many images: while it goes on (`Watch`), and at its end (`Report`). Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PACKED = (".tar", ".parquet")
"""Endings of --out that pack the results of many images in few files; see `packing`."""


@dataclass(frozen=True)
class Job:
    """One image and the name of its results, relative to their folder, without ending."""

    image: str
    name: str


class Watch:
    """What is told of a run while it goes on; this one says nothing.

    Attributes:
        wants_content: whether `done` is given what the JSON of a result says; reading it takes a moment.
    """

    wants_content = False

    def begin(self, total: int, finished: int) -> None:
        """There are so many images, of which so many were finished before."""

    def found(self, job: Job, content: dict[str, Any]) -> None:
        """An image was done before: its JSON; told only if content is wanted."""

    def part(self, job: Job, share: float) -> None:
        """So much of an image is done, 0 to 1; told only of images that take long."""

    def done(self, job: Job, result: Any, content: dict[str, Any]) -> None:
        """An image is done: its result, None if it was done on another machine; and its JSON, if wanted."""

    def failed(self, job: Job, error: str) -> None:
        """An image is bad."""

    def end(self) -> None:
        """All images are through, or the run is broken off."""


@dataclass
class Report:
    """What a run did.

    Attributes:
        done: the images that have results. fresh: how many of them were computed now. errors: message by image.
        places: the folder, or the archives, and what was written of all images together. listed: the file that lists
            the bad ones. seconds: it took.
    """

    done: list[Job] = field(default_factory=list)
    fresh: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    listed: str = ""
    seconds: float = 0.0
