"""Notes about an image that was read, such as that it is the first frame of many.

Pipelines collect them for the warnings of a result. Elsewhere they are Python warnings.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_HEARD: ContextVar[list[str] | None] = ContextVar("heard", default=None)


class ImageWarning(UserWarning):
    """An image was read, but may not be what was meant."""


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the notes about images that are read within, in this thread."""
    heard: list[str] = []
    token = _HEARD.set(heard)
    try:
        yield heard
    finally:
        _HEARD.reset(token)


def say(what: str, sentence: str) -> None:
    """Add a note about an image. `what`: its name in messages."""
    heard = _HEARD.get()
    if heard is None:
        warnings.warn(f"{what}: {sentence}", ImageWarning, stacklevel=4)
    elif sentence not in heard:
        heard.append(sentence)
