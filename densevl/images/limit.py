"""The pixel limit of images, as a context: pipelines take paths, and do not pass it to the reader."""

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
    """Set the pixel limit of images read within the context, like `read_image(max_pixels=)` for one image.

    Memory grows with the size of an image that is read at once; docs/huge.md has figures.

    Args:
        max_pixels: at least 1; None is `MAX_PIXELS`.

    Raises:
        ImageError: If `max_pixels` is something else.

    Examples:
        >>> with pixel_limit(400_000_000):
        ...     result = segment("poster.tif", "lettering, portrait")
    """
    if max_pixels is not None and (not isinstance(max_pixels, int) or max_pixels < 1):
        raise ImageError(f"max_pixels is {max_pixels!r}; it must be a number of pixels, at least 1")
    token = _LIMIT.set(max_pixels)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def most_pixels() -> int:
    """Return the setting of `pixel_limit` here, or `MAX_PIXELS`."""
    return MAX_PIXELS if (limit := _LIMIT.get()) is None else limit
