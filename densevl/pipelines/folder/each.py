"""The loop over images: yield each with its result, in order. Bad images are reported, and the others continue."""

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
"""Errors of one image, as opposed to the run."""
WAITING, HELD = 16, 2**27
"""Results that may wait to be written while the next are computed, and their limit in bytes if there are several."""
Failed = Callable[[Any, Exception], None]
Run = Callable[[Sequence[Any], Failed], Iterator[Any]]
"""Takes images and yields their results in order. Bad images are passed to the function instead."""


def one_by_one(call: Callable[[Any], Any]) -> Run:
    """Turn a function of one image into one of many."""

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
    """Yield images with their results, in order. Bad images are passed to `failed`."""
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
    """Do the jobs that are not done yet.

    Args:
        run: processes images. is_done: whether a job is done. save: writes a result, in a thread. failed, saved: called
            with bad images and written results, in order.
        group: number of images that share passes; see `tasks.Task`. bad_before: images that could not be read earlier.
            If a group lacks only such images and they still cannot be read, it is not computed again.
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
    """Writes results in a thread, and reports them in order.

    All results taken are written and reported even if an exception or Ctrl-C is raised. A second Ctrl-C drops the rest.
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
        """Write a result when its turn comes."""
        if hasattr(result, "progress"):  # the model runs while it is written, so nothing can overlap
            self.finish()
            self._tell(job, result, lambda: self._save(job, result))
            return
        with unstopped():
            future = self._pool.submit(contextvars.copy_context().run, self._save, job, result)
            self._waiting.append((job, result, future))
        while len(self._waiting) > WAITING or (len(self._waiting) > 1 and sum(map(_size, self._waiting)) > HELD):
            self._next()

    def bad(self, job: Job, error: Exception) -> None:
        """Report a bad image after all images before it."""
        self.finish()
        self._failed(job, error)

    def finish(self) -> None:
        """Wait until all results taken are written."""
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
        except BAD as error:  # some results are computed while they are written
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
                    with suppress(DensevlError, OSError):  # the exception already raised takes precedence
                        self._next()
                self._pool.shutdown()
            except KeyboardInterrupt:
                self._pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextmanager
def unstopped() -> Iterator[None]:
    """Delay Ctrl-C to the end of a short piece of work."""
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
    """Return the bytes of the arrays of a result."""
    return sum(getattr(value, "nbytes", 0) for value in getattr(waiting[1], "__dict__", {}).values())


def _parts(jobs: Sequence[Job], size: int, is_done: Callable[[Job], bool]) -> Iterator[Sequence[Job]]:
    """Yield jobs in groups of `size`, counted from the first. With groups of one, yield all that are not done."""
    if size == 1:
        yield [job for job in jobs if not is_done(job)]
    else:
        yield from (jobs[first : first + size] for first in range(0, len(jobs), size))


def _unreadable(image: str) -> ImageError | None:
    """Return why an image cannot be read, or None if it can."""
    try:
        read_image(image)
    except ImageError as error:
        return error
    return None
