"""The loop over images itself: each with its result, in order; a bad one is told of and the others go on."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from densevl.errors import ImageError, ProposalError

BAD = (ImageError, ProposalError)
"""What is wrong with one image and not with the run."""
Failed = Callable[[Any, Exception], None]
Run = Callable[[Sequence[Any], Failed], Iterator[Any]]
"""Images to their results, in order; an image that is bad goes to the function instead."""


def one_by_one(call: Callable[[Any], Any]) -> Run:
    """Run a function of one image on many."""

    def run(images: Sequence[Any], failed: Failed) -> Iterator[Any]:
        for image in images:
            try:
                result = call(image)
            except BAD as error:
                failed(image, error)
                continue
            yield result

    return run


def each(run: Run, images: Sequence[Any], failed: Failed) -> Iterator[tuple[Any, Any]]:
    """Images with their results, in order; those that are bad go to `failed`."""
    waiting, bad = deque(images), set()

    def note(image: Any, error: Exception) -> None:
        bad.add(image)
        failed(image, error)

    for result in run(images, note):
        while waiting[0] in bad:
            waiting.popleft()
        yield waiting.popleft(), result


def stamp(image: str) -> list[int | None]:
    """Size and time of change of a file; unknown for one that is not there."""
    try:
        facts = os.stat(image)
    except (OSError, ValueError):
        return [None, None]
    return [facts.st_size, facts.st_mtime_ns]
