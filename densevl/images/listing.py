"""From files and folders to a list of image files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from densevl.errors import ImageError
from densevl.files import shown

EXTENSIONS: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)


def list_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Turn files and folders into a list of image files.

    A folder gives the images directly inside it, by extension, sorted by name, without hidden files. A file is kept
    as given, even when it is missing or has an odd extension, so that reading it can name the fault.

    Args:
        paths: one path or many.

    Returns:
        The files, in the order given; at least one.

    Raises:
        ImageError: nothing was found, or a folder cannot be read.
    """
    given = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    found: list[Path] = []
    for path in given:
        if not os.path.isdir(path):
            found.append(path)
            continue
        try:
            inside = sorted(path.iterdir())
        except OSError as error:
            raise ImageError(f"cannot list folder {shown(path)}: {error.strerror}") from error
        found += [p for p in inside if p.suffix.lower() in EXTENSIONS and p.name[0] != "." and p.is_file()]
    if not found:
        where = ", ".join(shown(path) for path in given[:3]) or "an empty list"
        raise ImageError(f"no images in {where}: files must end in {' '.join(sorted(EXTENSIONS))}")
    return found
