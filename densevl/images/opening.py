"""Open an encoded image: a path, bytes or an open file, with a reader that detects truncated files."""

from __future__ import annotations

import io
import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from densevl.errors import ImageError, suggest
from densevl.files import shown
from densevl.images.addresses import fetch, is_address, local, refuse_web

CUT: Final = "the file ends before the picture does (truncated download or copy?)"


class StrictReader(io.BufferedReader):
    """A file that, once `strict`, raises if it is read beyond its end.

    Pillow asks for more data while a picture is unfinished. If its global LOAD_TRUNCATED_IMAGES is set, as some popular
    packages do, it accepts an empty answer. Here that is an error regardless of the global.
    """

    strict = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self.strict and not data and size != 0:
            raise OSError(CUT)
        return data


def is_file(source: Any) -> bool:
    """Return whether `reader` accepts it: a path, bytes, or an object with `read`."""
    return isinstance(source, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(source, "read")


@contextmanager
def reader(source: Any, name: str | None) -> Iterator[tuple[StrictReader, str]]:
    """Open a source for reading from its start. A file opened by the caller stays open.

    Args:
        source: see `is_file`. name: its name in messages; None uses its path.

    Yields:
        The reader, and the source's name for messages.

    Raises:
        ImageError: If a path is missing (the message suggests similar names in its folder, unless `name` is given), a
            folder, a device, an address or locked; or a file is opened as text, closed, or cannot seek.
    """
    what = display_name(name)
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        with _open_path(path, what or shown(path), named=bool(what)) as file:
            yield file, what or shown(path)
    elif isinstance(source, bytes | bytearray | memoryview):
        yield StrictReader(io.BytesIO(bytes(source))), what or "the image in memory"
    else:
        own = getattr(source, "name", None)
        what = what or (shown(own) if isinstance(own, str) else f"the {type(source).__name__}")
        try:
            if not hasattr(source, "readinto") or not source.seekable():
                raise ImageError(f"{what} is not a seekable binary file: open it with 'rb', or pass its content")
            file = StrictReader(source)
            file.seek(0)
        except (OSError, ValueError, AttributeError, TypeError) as error:  # ValueError: a closed file
            raise ImageError(f"{what} cannot be read: {error}; open it for reading, with 'rb'") from error
        try:
            yield file, what
        finally:
            file.detach()  # otherwise it closes the caller's file when deleted


def display_name(name: str | None) -> str:
    """Return a caller's name for an image, often that of an upload, on one line and shortened; "" for none."""
    return " ".join("".join(c if c.isprintable() else " " for c in name or "").split())[:200]


def _open_path(path: str, what: str, *, named: bool) -> StrictReader:
    refuse_web(path, what)
    if is_address(path):
        return StrictReader(io.BytesIO(fetch(path)))
    path = local(path)
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            raise ImageError(f"{what} is a folder: give a file, or expand it with list_images()")
        if not stat.S_ISREG(kind):
            raise ImageError(f"{what} is not a regular file but a device or pipe: copy its content to a file")
        return StrictReader(io.FileIO(path))
    except FileNotFoundError as error:
        raise ImageError(f"{what} does not exist{'' if named else _near(Path(path))}") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ImageError(f"cannot open {what}: {getattr(error, 'strerror', None) or error}") from error


def _near(path: Path) -> str:
    """Return a hint for a missing file: similar names in its folder, or that the folder is missing too."""
    try:
        with os.scandir(path.parent) as entries:
            return suggest(path.name, [entry.name for entry in itertools.islice(entries, 2000)])
    except OSError:
        return f": its folder {shown(path.parent)} does not exist or cannot be read"
