"""Names of results: one for each image that hides no other, none that leads out of their folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densevl.files import unique_stems
from densevl.images import Found
from densevl.regions.exports.kinds import EXPORTS

_EXPORTED = [name for one in EXPORTS.values() for name in (one.file, *one.others) if name]
RESERVED = ("densevl", "errors", "contact_sheet", "scores", *dict.fromkeys(Path(name).stem for name in _EXPORTED))
"""Names that no result gets, as files of the whole run have them; none depends on what a run was asked for."""
FOLDERS = {"images", *(one.part for one in EXPORTS.values() if one.part)}
"""Folders that no result is in: those of exports, and that of the photos of YOLO's."""


def names_for(found: Found, keys: Sequence[str], known: Mapping[str, list[Any]]) -> list[str]:
    """A name for each image: the one it has, or a new one that nobody has."""
    taken: dict[str, list[str]] = {"": [*RESERVED]}
    for entry in known.values():
        folder, _, stem = str(entry[0]).rpartition("/")
        taken.setdefault(folder, []).append(stem)
    groups: dict[str, list[int]] = {}
    for index, (key, folder) in enumerate(zip(keys, found.folders, strict=True)):
        if key not in known:
            groups.setdefault(_apart(Path(folder).as_posix()) if folder else "", []).append(index)
    names = {index: str(known[key][0]) for index, key in enumerate(keys) if key in known}
    for folder, members in groups.items():
        stems = unique_stems([found.named[index] for index in members], taken.get(folder, ()))
        names |= {index: f"{folder}/{stem}".lstrip("/") for index, stem in zip(members, stems, strict=True)}
    return [names[index] for index in range(len(keys))]


def _apart(folder: str) -> str:
    """A folder of results that is none of `FOLDERS`; `given_folder` is the way back."""
    first, slash, rest = folder.partition("/")
    return f"{first}{'_' * (first.rstrip('_').casefold() in FOLDERS)}{slash}{rest}"


def given_folder(name: str) -> str:
    """The folder that an image was in, by the name of its result; "" for none."""
    first, slash, rest = name.rpartition("/")[0].partition("/")
    return f"{first[:-1] if first.rstrip('_').casefold() in FOLDERS else first}{slash}{rest}"


def require_inside(names: Sequence[str]) -> None:
    """Refuse a record that would have files outside its folder replaced or removed, or two images in one file.

    Raises:
        ValueError, TypeError: it says so, or no names at all.
    """
    paths = [Path(name) for name in names]
    if len(set(paths)) < len(paths) or any(
        not path.parts or path.anchor or ".." in path.parts or "\0" in str(path) for path in paths
    ):
        raise ValueError("not the names of files in a folder")
