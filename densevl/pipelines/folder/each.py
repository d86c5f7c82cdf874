"""The loop over images itself: each with its result, in order; a bad one is told of and the others go on."""

from __future__ import annotations

import contextvars
import signal
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from densevl.errors import DensevlError, ImageError, ProposalError
from densevl.images import read_image
from densevl.pipelines.folder.watch import Job

BAD = (ImageError, ProposalError)
"""What is wrong with one image and not with the run."""
WAITING, HELD = 16, 2**27
"""Results that wait to be written while the next ones are made, and bytes of them where there are several."""
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
    saved: Callable[[Job, Any], None] = lambda job, result: None,
    *,
    group: int = 1,
    bad_before: Collection[str] = (),
) -> None:
    """Do the jobs that are not done.

    Args:
        run: does images. is_done: whether a job is. save: writes a result, in a thread. failed, saved: are told of bad
            images and of results that are written, in order.
        group: so many images share passes; see `tasks.Task`. bad_before: images that could not be read earlier; if only
            such are missing of a group and they still cannot be read, the rest of it is left in peace.
    """
    by_image = {job.image: job for job in jobs}
    with _Writing(save, saved, failed) as writing:
        for part in _parts(jobs, group, is_done):
            missing = [job.image for job in part if not is_done(job)]
            if group > 1 and set(missing) <= set(bad_before):
                for image in tuple(missing):
                    if (error := _unreadable(image)) is not None:
                        writing.bad(by_image[image], error)
                        missing.remove(image)

            def bad(image: Any, error: Exception) -> None:
                writing.bad(by_image[image], error)

            for image, result in each(run, [job.image for job in part], bad) if missing else ():
                if image in missing:
                    writing.take(by_image[image], result)


class _Writing:
    """Results on their way to files: a thread writes them, and they are told of in order.

    What was taken is written and told of whatever is raised, Ctrl-C too; a second Ctrl-C leaves the rest.
    """

    def __init__(
        self,
        save: Callable[[Job, Any], None],
        saved: Callable[[Job, Any], None],
        failed: Callable[[Job, Exception], None],
    ) -> None:
        self._save, self._saved, self._failed = save, saved, failed
        self._pool = ThreadPoolExecutor(1, "densevl-writing")
        self._waiting: deque[tuple[Job, Any, Future[None]]] = deque()

    def take(self, job: Job, result: Any) -> None:
        """Write a result, when its turn comes."""
        if hasattr(result, "progress"):  # the model makes it while it is written, so there is nothing to do meanwhile
            self.finish()
            self._tell(job, result, lambda: self._save(job, result))
            return
        with unstopped():
            future = self._pool.submit(contextvars.copy_context().run, self._save, job, result)
            self._waiting.append((job, result, future))
        while len(self._waiting) > WAITING or (len(self._waiting) > 1 and sum(map(_size, self._waiting)) > HELD):
            self._next()

    def bad(self, job: Job, error: Exception) -> None:
        """Tell of a bad image, after all before it."""
        self.finish()
        self._failed(job, error)

    def finish(self) -> None:
        """Wait until all is written that was taken."""
        while self._waiting:
            self._next()

    def _next(self) -> None:
        wait([self._waiting[0][2]])
        with unstopped():
            job, result, future = self._waiting.popleft()
            self._tell(job, result, future.result)

    def _tell(self, job: Job, result: Any, written: Callable[[], None]) -> None:
        try:
            written()
        except BAD as error:  # some results are made while they are written
            self._failed(job, error)
        else:
            self._saved(job, result)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            try:
                while self._waiting:
                    with suppress(DensevlError, OSError):  # what is raised already comes first
                        self._next()
                self._pool.shutdown()
            except KeyboardInterrupt:
                self._pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextmanager
def unstopped() -> Iterator[None]:
    """Put off Ctrl-C to the end of a short piece of work."""
    before, stops = signal.getsignal(signal.SIGINT), list[Any]()
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    signal.signal(signal.SIGINT, lambda *stop: stops.append(stop))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if stops:
            before(*stops[0])


def _size(waiting: tuple[Job, Any, Future[None]]) -> int:
    """Bytes of the arrays of a result."""
    return sum(getattr(value, "nbytes", 0) for value in getattr(waiting[1], "__dict__", {}).values())


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
