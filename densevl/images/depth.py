"""How many of their 16 bits images use, for all that is read within: pipelines take paths, and have no say in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from densevl.errors import ImageError

LEAST, MOST = 8, 16
_BITS: ContextVar[int | None] = ContextVar("bits", default=None)


@contextmanager
def bit_depth(bits: int | None) -> Iterator[None]:
    """Read 16-bit images as using so many of their bits, within: as `read_image(bits=)` does one.

    Args:
        bits: 8 to 16, as cameras and scanners with 10, 12 or 14 have it; None takes all 16.

    Raises:
        ImageError: `bits` is something else.

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
    """What `bit_depth` says here; None for nothing."""
    return _BITS.get()


def checked(bits: int | None) -> int | None:
    """A number of bits.

    Raises:
        ImageError: it cannot be.
    """
    if bits is not None and (not isinstance(bits, int) or not LEAST <= bits <= MOST):
        raise ImageError(f"bits is {bits!r}; 16-bit images use {LEAST} to {MOST} of them")
    return bits
