"""Many images in order: read ahead by a thread, those that share a pass together, errors in their place."""

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
"""Told an image that cannot be read, and why."""
ON_CPU = 2**18  # pixels a pass: 28 windows of 96 x 96, 5 of 224 x 224; larger passes fall out of the cache
ON_GPU = 64  # windows, or whole pictures, a pass
AHEAD = 16  # images that are read before they are needed
HELD = 2**28  # bytes of them

Call = TypeVar("Call", bound=Callable[..., Any])
Read = TypeVar("Read")
Result = TypeVar("Result")


def batch_size(batch: int | None, device: Any, pixels: int) -> int:
    """How many windows, or whole pictures, of so many pixels share a pass; None takes what suits the device.

    Raises:
        OptionError: less than 1, or no whole number.
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
    """Results in the order of their images.

    What goes together depends on the images alone, not on time, so that a second run gives the same to the last bit.

    Args:
        images: anything; they are taken as they are needed. An iterator may write the next one to the same memory.
        read: reads one, in a thread, which waits while much is read and not used: what has `nbytes` counts by those.
        run: makes the results of some, in order.
        share: what part of a pass an image takes; they are handed to `run` together while it has room.
        on_error: is told of images that cannot be read, in their place; None raises there.

    Raises:
        ImageError: an image cannot be read, once the results of those before it are out.
        OptionError: one image in place of several, or no images.
    """
    is_one = isinstance(images, (str, bytes, os.PathLike)) or getattr(images, "ndim", 0) in (2, 3)
    if is_one or not hasattr(images, "__iter__"):
        raise OptionError(f"images are one {type(images).__name__}; give a list, or call the class itself with one")
    together: list[tuple[Any, Read]] = []
    taken = 0.0
    told: list[tuple[str, ...]] = []
    for image, waiting in _ahead(images, _hearing(read), AHEAD):
        error = waiting.exception()
        own = 0.0 if error is not None else share(waiting.result()[0])
        if together and (error is not None or taken + own > 1 + 1e-9):
            yield from map(with_warnings, run(together), told)
            together, taken, told = [], 0.0, []
        if error is None:
            given, said = waiting.result()
            together, taken, told = [*together, (image, given)], taken + own, [*told, said]
        elif isinstance(error, ImageError) and on_error is not None:
            on_error(image, error)
        else:
            raise error
    if together:
        yield from map(with_warnings, run(together), told)


def with_warnings(result: Result, said: Iterable[str]) -> Result:
    """A result with what was said of its image among its warnings; where it has none, Python warns."""
    changed: Any = result
    if said and hasattr(result, "warnings"):
        return replace(changed, warnings=(*changed.warnings, *said))
    for sentence in said:
        warnings.warn(sentence, ImageWarning, stacklevel=2)
    return result


def hearing(call: Call) -> Call:
    """Decorate a function of images to a result: what is said of those images is among its warnings."""

    @functools.wraps(call)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with collected() as said:
            result = call(*args, **kwargs)
        return with_warnings(result, said)

    return wrapped  # type: ignore[return-value]


def _hearing(read: Callable[[Any], Read]) -> Callable[[Any], tuple[Read, tuple[str, ...]]]:
    """`read`, with what is said of the image."""

    def reading(image: Any) -> tuple[Read, tuple[str, ...]]:
        with collected() as said:
            return read(image), tuple(said)

    return reading


def source(image: Any) -> str | None:
    """The path an image was given as, for the meta of its result."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else None


def one_by_one(
    images: Iterable[Any],
    read: Callable[[Any], Read],
    call: Callable[[Any, Read], Result],
    *,
    on_error: OnError | None = None,
) -> Iterator[Result]:
    """`many` where images share nothing but the reading ahead."""
    return many(images, read, lambda few: (call(*one) for one in few), on_error=on_error)


def _ahead(
    images: Iterable[Any], read: Callable[[Any], tuple[Read, tuple[str, ...]]], depth: int
) -> Iterator[tuple[Any, Future[tuple[Read, tuple[str, ...]]]]]:
    """Each image with its reading, at most `depth` of them under way."""
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

    several = isinstance(images, (list, tuple))  # their images do not change while the next one is taken
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
    """A copy of what an iterator may write its next image to."""
    if isinstance(image, (bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, np.ndarray):
        return image.copy()
    torch = sys.modules.get("torch")  # a tensor can only come from a torch that is already imported
    return image.detach().clone() if torch is not None and isinstance(image, torch.Tensor) else image


def _read_now(read: Callable[[Any], Read], image: Any) -> Future[Read]:
    """Read an open file or a PIL image before its iterator closes it or goes to its next frame."""
    found: Future[Read] = Future()
    try:
        found.set_result(read(image))
    except Exception as error:  # noqa: BLE001  raised at its place
        found.set_exception(error)
    return found


class _Room:
    """Bytes that are read and not taken yet: whoever reads waits until there is room."""

    def __init__(self) -> None:
        self._held, self._changed = 0.0, threading.Condition()

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._held < HELD)

    def fill(self, size: float) -> None:
        with self._changed:
            self._held += size
            self._changed.notify()
