"""From files, folders, patterns and lists of paths to the images they mean, with a name for the results of each."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densevl.errors import ImageError, OutputError
from densevl.files import RUN_FILE, shown

EXTENSIONS: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
LISTS: Final = frozenset({".txt", ".lst"})
Sources = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class Found:
    """What sources hold.

    Attributes:
        paths: the images, each once, in the order given; those of a folder are sorted.
        folders: for each the folder its results belong in: its place below the folder that was given, or "".
        left_out: what stands in the folders and was not taken, and how many: {".heic": 3, "a broken link": 1}.
    """

    paths: tuple[str, ...]
    folders: tuple[str, ...]
    left_out: Counter[str]


def list_images(sources: Sources) -> list[Path]:
    """Turn files, folders, patterns and lists of paths into a list of image files; see `find_images`.

    Raises:
        ImageError: nothing was found, or a folder cannot be read.
    """
    return [Path(path) for path in find_images(sources).paths]


def find_images(sources: Sources, *, skip: str | os.PathLike[str] | None = None) -> Found:
    """Find the images that sources mean.

    Args:
        sources: one or many of: a file, kept as given even when it is missing or has an odd ending, so that reading it
            can name the fault; a folder, taken with all below it, by ending, without hidden files and folders of
            results; a pattern such as "photos/**/*.jpg"; a .txt or .lst file with a path a line.
        skip: a folder that is left out wherever it is met, such as the one that results go to.

    Raises:
        ImageError: nothing was found, or a folder or list cannot be read. OutputError: a folder given is `skip` itself.
    """
    given = [os.fspath(sources)] if isinstance(sources, str | os.PathLike) else [os.fspath(path) for path in sources]
    left_out: Counter[str] = Counter()
    found: dict[str, tuple[str, str]] = {}  # by absolute path, so that a photo named twice is done once
    for source in given:
        for path, folder in _expanded(source, left_out, None if skip is None else os.path.realpath(skip)):
            found.setdefault(os.path.abspath(path), (path, folder))
    if not found:
        where = ", ".join(shown(source) for source in given[:3]) or "an empty list"
        raise ImageError(f"no images in {where}: files must end in {' '.join(sorted(EXTENSIONS))}")
    paths, folders = zip(*found.values(), strict=True)
    return Found(paths, folders, left_out)


def _expanded(source: str, left_out: Counter[str], skip: str | None) -> Iterator[tuple[str, str]]:
    if os.path.isdir(source):
        if os.path.realpath(source) == skip:
            raise OutputError(f"results in {shown(source)} would be taken for images of it; name another --out")
        yield from sorted(_below(source, "", left_out, skip, set()), key=lambda found: found[0].split(os.sep))
    elif os.path.splitext(source)[1].lower() in LISTS and os.path.isfile(source):
        yield from ((path, "") for path in _listed(source))
    elif glob.has_magic(source) and not os.path.lexists(source):
        matches = [path for path in sorted(glob.glob(source, recursive=True)) if os.path.isfile(path)]
        if not matches:
            raise ImageError(f"no file matches the pattern {shown(source)}")
        yield from ((path, "") for path in matches)
    else:
        yield source, ""


def _below(
    top: str, folder: str, left_out: Counter[str], skip: str | None, seen: set[str]
) -> Iterator[tuple[str, str]]:
    """Images in `top` and below, each with its folder; a link that leads back to a folder above is not followed."""
    try:
        entries = list(os.scandir(top))
    except OSError as error:
        raise ImageError(f"cannot list folder {shown(top)}: {error.strerror}") from error
    here = os.path.realpath(top)
    if here in seen or here == skip:
        return
    if folder and any(entry.name == RUN_FILE for entry in entries):
        left_out["a folder of results"] += 1
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _below(entry.path, os.path.join(folder, entry.name), left_out, skip, seen | {here})
        elif not entry.is_file():
            left_out["a broken link" if entry.is_symlink() else "no regular file"] += 1
        elif (ending := os.path.splitext(entry.name)[1].lower()) in EXTENSIONS:
            yield entry.path, folder
        else:
            left_out[ending or "no ending"] += 1


def _listed(path: str) -> list[str]:
    """The lines of a text file; what is not there as seen from here is looked for beside the list."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"the list of paths {shown(path)} cannot be read: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    beside = os.path.dirname(path)
    return [name if os.path.lexists(name) else _or(os.path.join(beside, name), name) for name in names]


def _or(path: str, other: str) -> str:
    return path if os.path.lexists(path) else other
