"""Expand files, folders, patterns and lists of paths to images, with a name for the results of each."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densevl.errors import ImageError, OutputError
from densevl.files import RUN_FILE, shown
from densevl.images.addresses import TAR, archive_of, braces, is_address, is_outside, key_of, local, opened, refuse_web
from densevl.images.decoding import reads_heif

EXTENSIONS: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".hif"}
)
_HEIF: Final = frozenset({".heic", ".heif", ".hif"})
_HINT: Final = 'of HEIC (pip install "densevl[heif]")'
LISTS: Final = frozenset({".txt", ".lst"})
NAMELESS: Final = "file without extension"
Entry = tuple[str, str, str]
"""The path of an image, the folder of its results, and the path they are named after."""
Sources = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class Found:
    """The images found in sources.

    Attributes:
        paths: the images, without repeats, in the order given; those of a folder are sorted.
        folders: for each image the folder of its results: its place below the given folder, or "".
        named: for each image the path that its results are named after.
        left_out: counts of what is in the folders but not used: {".txt": 3, "broken link": 1}.
    """

    paths: tuple[str, ...]
    folders: tuple[str, ...]
    named: tuple[str, ...]
    left_out: Counter[str]

    @property
    def told(self) -> str:
        """What was left out, in words: "3 .txt, 1 broken link"; "" for nothing."""
        return ", ".join(f"{count} {_many(kind, count)}" for kind, count in sorted(self.left_out.items()))


def _many(kind: str, count: int) -> str:
    noun, *rest = re.split(r"(?= (?:of|to|that|without) )", kind, maxsplit=1)
    plain = count == 1 or kind.startswith((".", "of "))
    return kind if plain else "".join([f"{noun}s", *rest])


def list_images(sources: Sources) -> list[Path]:
    """Expand files, folders, patterns and lists of paths to a list of image files; see `find_images`.

    Raises:
        ImageError: If nothing is found, or a folder cannot be read.
    """
    return [Path(path) for path in find_images(sources).paths]


def find_images(sources: Sources, *, skip: str | os.PathLike[str] | None = None) -> Found:
    """Find the images in sources.

    Args:
        sources: one or more of: a file, kept as given even if it is missing or has an odd extension, so that reading it
            can name the problem; a folder, searched recursively by extension, without hidden files and folders of
            results; a pattern such as "photos/**/*.jpg"; a .txt or .lst file with one path per line; a tar archive, or
            several as "photos-{0000..0003}.tar"; and addresses of all these except lists ("s3://bucket/photos").
        skip: a folder that is left out wherever it is met, such as the one for results.

    Raises:
        ImageError: If nothing is found, or a folder or list cannot be read.
        OutputError: If a given folder is `skip` itself.
    """
    given = [os.fspath(sources)] if isinstance(sources, str | os.PathLike) else [os.fspath(path) for path in sources]
    if not all(given):
        raise ImageError("a path of an image is empty: '' (is a variable of a script empty?)")
    left_out: Counter[str] = Counter()
    found: dict[str, Entry] = {}  # by absolute path, so that a photo given twice is used once
    for source in (name for text in given for name in braces(local(text))):
        for entry in _expanded(source, left_out, None if skip is None else local(os.fspath(skip))):
            if is_outside(entry[1]):  # in an object store ".." is an ordinary name
                raise ImageError(f"{shown(entry[0])} would put results outside of their folder")
            found.setdefault(key_of(entry[0]), entry)
    left_out = +left_out  # without zeros
    if not found:
        where = ", ".join(shown(source) for source in given[:3]) or "an empty list"
        there = f" (left out: {others})" if (others := Found((), (), (), left_out).told) else ""
        raise ImageError(f"no images in {where}{there}: files must end in {' '.join(sorted(EXTENSIONS))}")
    paths, folders, named = zip(*found.values(), strict=True)
    return Found(paths, folders, named, left_out)


def _expanded(source: str, left_out: Counter[str], skip: str | None) -> Iterator[Entry]:
    refuse_web(source, shown(source))
    if is_address(source) and not source.startswith(TAR):
        yield from _at(source, left_out, skip)
    elif source.endswith(".tar") and os.path.isfile(source):
        yield from _inside(source, left_out)
    elif os.path.isdir(source):
        beyond = None if skip is None else os.path.realpath(skip)
        if os.path.realpath(source) == beyond:
            raise OutputError(f"results in {shown(source)} would be taken for its images; name another --out")
        inside = sorted(_below(source, left_out, beyond), key=lambda found: found[0].split(os.sep))
        yield from ((path, folder, path) for path, folder in inside)
    elif os.path.splitext(source)[1].lower() in LISTS and os.path.isfile(source):
        yield from ((path, "", path) for path in _listed(source))
    elif glob.has_magic(source) and not os.path.lexists(source):
        matches = [path for path in sorted(glob.glob(source, recursive=True)) if os.path.isfile(path)]
        if not matches:
            raise ImageError(f"no file matches the pattern {shown(source)}")
        for path in matches:
            yield from _inside(path, left_out) if path.endswith(".tar") else [(path, "", path)]
    else:
        yield source, "", source


def _inside(place: str, left_out: Counter[str]) -> Iterator[Entry]:
    """Yield the images in a tar archive. Their results go to a folder of its name."""
    for member in archive_of(place).members:
        ending = os.path.splitext(member)[1].lower()
        if _is_readable(ending) and not os.path.basename(member).startswith("."):
            folder = os.path.join(os.path.basename(place).removesuffix(".tar"), os.path.dirname(member))
            yield f"{TAR}{member}::{place}", folder.rstrip(os.sep), member
        else:
            left_out[ending or NAMELESS] += 1


def _at(source: str, left_out: Counter[str], skip: str | None) -> Iterator[Entry]:
    """Yield the images at an address."""
    files, root = opened(source)
    if glob.has_magic(source):
        for path in sorted(files.glob(root)):
            address = files.unstrip_protocol(path)
            yield from _inside(address, left_out) if address.endswith(".tar") else [(address, "", path)]
    elif source.endswith(".tar"):
        yield from _inside(source, left_out)
    elif not files.isdir(root):
        yield source, "", root
    else:
        listed = sorted(files.find(root))
        results = [path.rpartition("/")[0] + "/" for path in listed if path.endswith(f"/{RUN_FILE}")]
        for path in listed:
            address, below = files.unstrip_protocol(path), path.removeprefix(root.rstrip("/")).lstrip("/")
            ending = os.path.splitext(path)[1].lower()
            if any(part.startswith(".") for part in below.split("/")) or any(map(path.startswith, results)):
                continue
            if skip is not None and address.startswith(f"{skip.rstrip('/')}/"):
                continue
            if _is_readable(ending):
                yield address, below.rpartition("/")[0], path
            else:
                left_out[ending or NAMELESS] += 1


def _below(top: str, left_out: Counter[str], skip: str | None) -> Iterator[tuple[str, str]]:
    """Yield images in `top` and below, each once with its folder. Links come last; circular ones are skipped."""
    waiting: list[tuple[str, str]] = [(top, "")]
    linked: list[tuple[str, str]] = []
    files: list[tuple[str, str]] = []
    walked, taken = set[str](), set[str]()
    while waiting or linked:
        place, folder = waiting.pop() if waiting else linked.pop(0)
        here = os.path.realpath(place)
        if here == skip:
            continue
        if here in walked:
            left_out["link to a folder that is taken"] += 1
            continue
        walked.add(here)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            if not folder:
                raise ImageError(f"cannot list folder {shown(place)}: {error.strerror}") from error
            left_out["folder that cannot be read"] += 1
            continue
        if folder and any(entry.name == RUN_FILE for entry in entries):
            left_out["folder of results"] += 1
            continue
        left_out["empty folder"] += not entries and bool(folder)
        for entry in entries:
            is_folder, is_file = _kind(entry)
            if entry.name.startswith("."):
                left_out["hidden file" if not is_folder else "hidden folder"] += 1
            elif is_folder:
                (linked if entry.is_symlink() else waiting).append((entry.path, os.path.join(folder, entry.name)))
            elif not is_file:
                left_out["broken link" if entry.is_symlink() else "special file"] += 1
            elif not _is_readable(ending := os.path.splitext(entry.name)[1].lower()):
                left_out[(_HINT if ending in _HEIF else ending) or NAMELESS] += 1
            elif entry.is_symlink():
                files.append((entry.path, folder))
            else:
                taken.add(os.path.join(here, entry.name))
                yield entry.path, folder
    for path, folder in files:
        if (target := os.path.realpath(path)) in taken:
            left_out["link to an image that is taken"] += 1
        else:
            taken.add(target)
            yield path, folder


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Return whether it is a folder, and a file. Circular links, for which `entry.is_dir` raises, are neither."""
    if entry.is_symlink():
        return os.path.isdir(entry.path), os.path.isfile(entry.path)
    return entry.is_dir(), entry.is_file()


def _is_readable(ending: str) -> bool:
    return ending in EXTENSIONS and (ending not in _HEIF or reads_heif())


def _listed(path: str) -> list[str]:
    """Return the lines of a text file. Paths that do not exist from here are tried relative to the list."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"the list of paths {shown(path)} cannot be read: {error}") from error
    written = (line.strip() for line in lines)
    names = [_bare(name) for name in written if name and (not name.startswith("#") or os.path.lexists(name))]
    beside = ((name, os.path.join(os.path.dirname(path), name)) for name in names)
    return [other if os.path.lexists(other) and not os.path.lexists(name) else name for name, other in beside]


def _bare(name: str) -> str:
    """Remove quotes around a path, as shells and spreadsheets write them, and "file://"."""
    if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'" and not os.path.lexists(name):
        name = name[1:-1]
    return local(name)
