"""The loop over images itself: each with its result, in order; a bad one is told of and the others go on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from densevl.errors import ImageError, ProposalError
from densevl.images import read_image
from densevl.pipelines.folder.watch import Job

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


def work_through(
    run: Run,
    jobs: Sequence[Job],
    is_done: Callable[[Job], bool],
    save: Callable[[Job, Any], None],
    failed: Callable[[Job, Exception], None],
    *,
    group: int = 1,
    bad_before: Collection[str] = (),
) -> None:
    """Do the jobs that are not done.

    Args:
        run: does images. is_done: whether a job is. save: takes a result. failed: is told of a bad image.
        group: so many images share passes; see `tasks.Task`. bad_before: images that could not be read earlier; if only
            such are missing of a group and they still cannot be read, the rest of it is left in peace.
    """
    by_image = {job.image: job for job in jobs}

    def bad(image: Any, error: Exception) -> None:
        failed(by_image[image], error)

    for part in _parts(jobs, group, is_done):
        missing = [job.image for job in part if not is_done(job)]
        if group > 1 and set(missing) <= set(bad_before):
            for image in tuple(missing):
                if (error := _unreadable(image)) is not None:
                    bad(image, error)
                    missing.remove(image)
        for image, result in each(run, [job.image for job in part], bad) if missing else ():
            if image in missing:
                try:
                    save(by_image[image], result)
                except BAD as error:  # some results are made while they are written
                    bad(image, error)


def _parts(jobs: Sequence[Job], size: int, is_done: Callable[[Job], bool]) -> Iterator[Sequence[Job]]:
    """Jobs in groups of `size`, counted from the first; where groups are of one, all together that are not done."""
    if size == 1:
        yield [job for job in jobs if not is_done(job)]
    else:
        yield from (jobs[first : first + size] for first in range(0, len(jobs), size))


def _unreadable(image: str) -> ImageError | None:
    """Why an image cannot be read, None if it can."""
    try:
        read_image(image)
    except ImageError as error:
        return error
    return None
