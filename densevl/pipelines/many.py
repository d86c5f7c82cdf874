"""Process many images in order. A thread reads ahead, images may share a pass, and errors are reported in place."""

from __future__ import annotations

import contextvars
import functools
import math
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from densevl.errors import ImageError, OptionError
from densevl.images.notes import ImageWarning, collected

OnError = Callable[[Any, ImageError], None]
"""Called with an image that cannot be read, and the error."""
ON_CPU = 2**18  # pixels per pass: 28 windows of 96 x 96, 5 of 224 x 224; larger passes fall out of the cache
ON_GPU = 64  # windows, or whole pictures, per pass
AHEAD = 16  # images read ahead
HELD = 2**28  # bytes of images held ahead

Call = TypeVar("Call", bound=Callable[..., Any])
Read = TypeVar("Read")
Result = TypeVar("Result")


def batch_size(batch: int | None, device: Any, pixels: int) -> int:
    """Return how many windows or pictures of `pixels` pixels share a pass; None chooses what suits the device.

    Raises:
        OptionError: If `batch` is less than 1 or not a whole number.
    """
    if batch is None:
        return max(1, ON_CPU // pixels) if device.type == "cpu" else ON_GPU
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise OptionError(f"batch is {batch!r}; it must be a whole number of at least 1, or None")
    return batch


def many(
    images: Iterable[Any],
    read: Callable[[Any], Read],
    run: Callable[[list[tuple[Any, Read]]], Iterable[Result]],
    *,
    share: Callable[[Read], float] = lambda read: 1.0,
    on_error: OnError | None = None,
) -> Iterator[Result]:
    """Yield results in the order of their images.

    Batches depend only on the images, not on timing, so that a second run gives bitwise identical results.

    Args:
        images: any iterable, consumed as needed. An iterator may write each image to the same memory.
        read: reads one image in a thread. The thread waits while too many bytes (`nbytes`) are read but not used yet.
        run: computes the results of several images, in order.
        share: the fraction of a pass that an image takes. Images are passed to `run` together while they fit.
        on_error: called for each image that cannot be read, in its place. None raises there.

    Raises:
        ImageError: If an image cannot be read, after the results of the images before it.
        OptionError: If one image is given instead of several, or no images.
    """
    is_one = isinstance(images, (str, bytes, os.PathLike)) or getattr(images, "ndim", 0) in (2, 3)
    if is_one or not hasattr(images, "__iter__"):
        raise OptionError(f"images are one {type(images).__name__}; give a list, or call the class itself with one")
    together: list[tuple[Any, Read]] = []
    taken = 0.0
    notes: list[tuple[str, ...]] = []
    for image, waiting in _ahead(images, _hearing(read), AHEAD):
        error = waiting.exception()
        own = 0.0 if error is not None else share(waiting.result()[0])
        if together and (error is not None or taken + own > 1 + 1e-9):
            yield from map(with_warnings, run(together), notes)
            together, taken, notes = [], 0.0, []
        if error is None:
            given, own_notes = waiting.result()
            together, taken, notes = [*together, (image, given)], taken + own, [*notes, own_notes]
        elif isinstance(error, ImageError) and on_error is not None:
            on_error(image, error)
        else:
            raise error
    if together:
        yield from map(with_warnings, run(together), notes)


def with_warnings(result: Result, said: Iterable[str]) -> Result:
    """Add the notes about an image to the warnings of its result. If it has no warnings, issue Python warnings."""
    changed: Any = result
    if said and hasattr(result, "warnings"):
        return replace(changed, warnings=tuple(dict.fromkeys((*changed.warnings, *said))))
    for sentence in said:
        warnings.warn(sentence, ImageWarning, stacklevel=2)
    return result


def hearing(call: Call) -> Call:
    """Decorate a function from images to a result, so that notes about the images become warnings of the result."""

    @functools.wraps(call)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with collected() as said:
            result = call(*args, **kwargs)
        return with_warnings(result, said)

    return wrapped  # type: ignore[return-value]


def _hearing(read: Callable[[Any], Read]) -> Callable[[Any], tuple[Read, tuple[str, ...]]]:
    """Wrap `read` so that it also returns the notes about the image."""

    def reading(image: Any) -> tuple[Read, tuple[str, ...]]:
        with collected() as said:
            return read(image), tuple(said)

    return reading


def source(image: Any) -> str | None:
    """Return the path an image was given as, for the result's metadata."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else None


def one_by_one(
    images: Iterable[Any],
    read: Callable[[Any], Read],
    call: Callable[[Any, Read], Result],
    *,
    on_error: OnError | None = None,
) -> Iterator[Result]:
    """Call `many` for images that share nothing except reading ahead."""
    return many(images, read, lambda few: (call(*one) for one in few), on_error=on_error)


def _ahead(
    images: Iterable[Any], read: Callable[[Any], tuple[Read, tuple[str, ...]]], depth: int
) -> Iterator[tuple[Any, Future[tuple[Read, tuple[str, ...]]]]]:
    """Yield each image with its future reading; at most `depth` are in progress."""
    waiting: deque[tuple[Any, Future[tuple[Read, tuple[str, ...]]]]] = deque()
    room, pool = _Room(), ThreadPoolExecutor(1, "densevl-reading")

    def reading(image: Any) -> tuple[Read, tuple[str, ...]]:
        room.wait()
        found = read(image)
        room.fill(getattr(found[0], "nbytes", 0))
        return found

    def first() -> tuple[Any, Future[tuple[Read, tuple[str, ...]]]]:
        image, found = waiting.popleft()
        if found.exception() is None:
            room.fill(-getattr(found.result()[0], "nbytes", 0))
        return image, found

    several = isinstance(images, (list, tuple))  # these images do not change when the next one is taken
    try:
        for image in images:
            image = image if several else _own(image)
            if not several and (hasattr(image, "read") or isinstance(image, Image.Image)):
                while waiting:
                    yield first()
                yield image, _read_now(read, image)
                continue
            waiting.append((image, pool.submit(contextvars.copy_context().run, reading, image)))
            if len(waiting) > depth:
                yield first()
        while waiting:
            yield first()
    finally:
        room.fill(-math.inf)
        pool.shutdown(cancel_futures=True)


def _own(image: Any) -> Any:
    """Copy an image whose memory an iterator may reuse for the next one."""
    if isinstance(image, (bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, np.ndarray):
        return image.copy()
    torch = sys.modules.get("torch")  # a tensor can only come from a torch that is already imported
    return image.detach().clone() if torch is not None and isinstance(image, torch.Tensor) else image


def _read_now(read: Callable[[Any], Read], image: Any) -> Future[Read]:
    """Read an open file or a PIL image before its iterator closes it or moves to the next frame."""
    found: Future[Read] = Future()
    try:
        found.set_result(read(image))
    except Exception as error:  # noqa: BLE001  raised in its place
        found.set_exception(error)
    return found


class _Room:
    """Counts the bytes read but not used yet. The reader waits until there is room."""

    def __init__(self) -> None:
        self._held, self._changed = 0.0, threading.Condition()

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._held < HELD)

    def fill(self, size: float) -> None:
        with self._changed:
            self._held += size
            self._changed.notify()
