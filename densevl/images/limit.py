"""How many pixels an image may have, for all that is read within: pipelines take paths, and have no say in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from densevl.errors import ImageError

MAX_PIXELS: Final = 100_000_000
_LIMIT: ContextVar[int | None] = ContextVar("max_pixels", default=None)


@contextmanager
def pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Read images of at most so many pixels, within: as `read_image(max_pixels=)` does one.

    Memory grows with an image that is read at once; docs/huge.md has figures.

    Args:
        max_pixels: at least 1; None is `MAX_PIXELS`.

    Raises:
        ImageError: `max_pixels` is something else.

    Examples:
        >>> with pixel_limit(400_000_000):
        ...     result = segment("poster.tif", "lettering, portrait")
    """
    if max_pixels is not None and (not isinstance(max_pixels, int) or max_pixels < 1):
        raise ImageError(f"max_pixels is {max_pixels!r}; it is the most pixels an image may have, 1 or more")
    token = _LIMIT.set(max_pixels)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def most_pixels() -> int:
    """What `pixel_limit` says here, else `MAX_PIXELS`."""
    return MAX_PIXELS if (limit := _LIMIT.get()) is None else limit
