"""Choose names of results: unique for each image, and never outside their folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densevl.files import unique_stems
from densevl.images import Found
from densevl.regions.exports.kinds import EXPORTS

_EXPORTED = [name for one in EXPORTS.values() for name in (one.file, *one.others) if name]
RESERVED = ("densevl", "errors", "contact_sheet", "scores", *dict.fromkeys(Path(name).stem for name in _EXPORTED))
"""Names that no result gets, because files of the whole run have them. They do not depend on a run's options."""
FOLDERS = {"images", *(one.part for one in EXPORTS.values() if one.part)}
"""Folders that no result is put in: those of exports, and YOLO's folder of photos."""


def names_for(found: Found, keys: Sequence[str], known: Mapping[str, list[Any]]) -> list[str]:
    """Return a name for each image: the one it has, or an unused one."""
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
    """Rename a folder of results that is in `FOLDERS`. `given_folder` reverses this."""
    first, slash, rest = folder.partition("/")
    return f"{first}{'_' * (first.rstrip('_').casefold() in FOLDERS)}{slash}{rest}"


def given_folder(name: str) -> str:
    """Return the folder that an image was in, from the name of its result; "" for none."""
    first, slash, rest = name.rpartition("/")[0].partition("/")
    return f"{first[:-1] if first.rstrip('_').casefold() in FOLDERS else first}{slash}{rest}"


def require_inside(names: Sequence[str]) -> None:
    """Refuse a record that would replace or remove files outside its folder, or write two images to one file.

    Raises:
        ValueError, TypeError: If it would, or does not contain names.
    """
    paths = [Path(name) for name in names]
    if len(set(paths)) < len(paths) or any(
        not path.parts or path.anchor or ".." in path.parts or "\0" in str(path) for path in paths
    ):
        raise ValueError("not the names of files in a folder")
