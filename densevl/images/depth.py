"""The number of bits used by 16-bit images, as a context: pipelines take paths, and do not pass it to the reader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from densevl.errors import ImageError

LEAST, MOST = 8, 16
_BITS: ContextVar[int | None] = ContextVar("bits", default=None)


@contextmanager
def bit_depth(bits: int | None) -> Iterator[None]:
    """Read 16-bit images within the context as using this many bits, like `read_image(bits=)` for one image.

    Args:
        bits: 8 to 16, for cameras and scanners with 10, 12 or 14 bits; None uses all 16.

    Raises:
        ImageError: If `bits` is something else.

    Examples:
        >>> with bit_depth(12):
        ...     result = segment("scan.tif", "cell, nucleus")
    """
    token = _BITS.set(checked(bits))
    try:
        yield
    finally:
        _BITS.reset(token)


def used_bits() -> int | None:
    """Return the setting of `bit_depth` here, or None."""
    return _BITS.get()


def checked(bits: int | None) -> int | None:
    """Return a number of bits after checking it.

    Raises:
        ImageError: If it is impossible.
    """
    if bits is not None and (not isinstance(bits, int) or not LEAST <= bits <= MOST):
        raise ImageError(f"bits is {bits!r}; 16-bit images use {LEAST} to {MOST} of them")
    return bits
