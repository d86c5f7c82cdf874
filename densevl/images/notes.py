"""What a user should know about an image that was read, such as that it is the first frame of many.

Whoever puts images to use collects it for the warnings of a result; elsewhere it is a warning of Python.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_HEARD: ContextVar[list[str] | None] = ContextVar("heard", default=None)


class ImageWarning(UserWarning):
    """An image was read, and may not be what was meant."""


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect what is said of the images that are read within, in this thread."""
    heard: list[str] = []
    token = _HEARD.set(heard)
    try:
        yield heard
    finally:
        _HEARD.reset(token)


def say(what: str, sentence: str) -> None:
    """Say something of an image. Args: what: what messages call it."""
    heard = _HEARD.get()
    if heard is None:
        warnings.warn(f"{what}: {sentence}", ImageWarning, stacklevel=4)
    elif sentence not in heard:
        heard.append(sentence)
