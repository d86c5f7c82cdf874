"""Who is told of a run over many images while it goes on. Importing this does not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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

    def done(self, job: Job, result: Any, content: dict[str, Any]) -> None:
        """An image is done: its result, None if it was done on another machine; and its JSON, if wanted."""

    def failed(self, job: Job, error: str) -> None:
        """An image is bad."""

    def end(self) -> None:
        """All images are through, or the run is broken off."""
