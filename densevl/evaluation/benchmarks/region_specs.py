"""Benchmarks with instance or panoptic truth: where their JSON, images and maps lie, as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densevl.errors import DatasetError, suggest
from densevl.evaluation.benchmarks.class_lists import BACKGROUND, ClassList
from densevl.evaluation.tasks import INSTANCE, PANOPTIC
from densevl.files import shown


@dataclass(frozen=True)
class RegionSpec:
    """A benchmark in COCO's formats.

    Attributes:
        name, task: as an experiment names them; folder: where it usually lies below a data folder.
        listing: the JSON, places tried in order. images: folders of images, tried in order for each image.
        maps: the folder of panoptic PNGs, "" for instances.
        expected: images of the evaluation split, None where it varies. note: what a reader of results should know.
        federated: not every category was looked for in every image (LVIS).
    """

    name: str
    task: str
    folder: str
    listing: tuple[str, ...]
    images: tuple[str, ...]
    maps: str = ""
    expected: int | None = None
    note: str = ""
    federated: bool = False

    def expected_files(self) -> list[str]:
        """The layout as lines to read, for messages."""
        lines = [" or ".join(self.listing), " or ".join(f"{folder}/*" for folder in self.images)]
        return lines + ([f"{self.maps}/*.png"] if self.maps else [])


_PHOTOS = ("val2017", "images/val2017", "images", "train2017", "images/train2017")
_RENDERED = "flat drawings: a regression check of methods, no evidence about photographs"


_KEYS = {
    "categories": ("id", "name"),
    "images": ("id", "height", "width"),
    "annotations": ("image_id", "category_id", "segmentation"),
}
_PANOPTIC_KEYS = ("image_id", "file_name", "segments_info")


def _both(name: str, folder: str, expected: int | None, note: str = "") -> list[RegionSpec]:
    """A folder in our own arrangement: images/, instances.json, panoptic.json and panoptic/."""
    return [
        RegionSpec(name, INSTANCE, folder, ("instances.json",), ("images",), "", expected, note),
        RegionSpec(name, PANOPTIC, folder, ("panoptic.json",), ("images",), "panoptic", expected, note),
    ]


_SPECS = [
    RegionSpec("coco", INSTANCE, "coco", ("annotations/instances_val2017.json",), _PHOTOS, "", 5000),
    RegionSpec(
        *("coco", PANOPTIC, "coco", ("annotations/panoptic_val2017.json",), _PHOTOS),
        "annotations/panoptic_val2017",
        5000,
        "names of stuff without the marks -merged, -other and -stuff",
    ),
    RegionSpec(
        *("lvis", INSTANCE, "lvis", ("lvis_v1_val.json", "annotations/lvis_v1_val.json"), _PHOTOS),
        expected=19809,
        note="federated: a category counts only in images where it was looked for",
        federated=True,
    ),
    *_both("rendered", "benchmark/scenes", 200, _RENDERED),
    *_both("rendered2x", "benchmark/scenes2x", 200, f"{_RENDERED}, of twice the side"),
    *_both("folder", ".", None),
]
REGION_SPECS: Mapping[tuple[str, str], RegionSpec] = {(spec.name, spec.task): spec for spec in _SPECS}


def region_spec(name: str, task: str) -> RegionSpec:
    """The benchmark of that name and task.

    Raises:
        DatasetError: there is none.
    """
    known = [own for own, kind in REGION_SPECS if kind == task]
    if name not in known:
        raise DatasetError(f"no dataset '{name}' for task {task}{suggest(name, known)}; there are {', '.join(known)}")
    return REGION_SPECS[name, task]


def read_listing(path: Path, panoptic: bool) -> dict[str, Any]:
    """COCO's JSON, with images, annotations and categories.

    Raises:
        DatasetError: unreadable, or something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{shown(path)} cannot be read as JSON: {error}") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(isinstance(data.get(part), list) for part in parts):
        raise DatasetError(f"{shown(path)} is no COCO file: it needs lists of {', '.join(parts)}")
    if not data["categories"]:
        raise DatasetError(f"{shown(path)} has no categories: there is nothing to look for")
    for part in parts:
        _need(path, part, data[part], _PANOPTIC_KEYS if panoptic and part == "annotations" else _KEYS[part])
    for entry in data["annotations"] if panoptic else ():
        _need(path, "segments_info", entry["segments_info"], ("id", "category_id"))
    return data


def _need(path: Path, part: str, entries: list[Any], keys: tuple[str, ...]) -> None:
    for entry in entries:
        absent = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if absent:
            raise DatasetError(f"{shown(path)} has an entry of {part} without {absent[0]}: {str(entry)[:80]}")


def class_list_of(name: str, categories: list[dict[str, Any]]) -> ClassList:
    """Categories as classes in the order of the file; one called "background" comes first and has no string.

    LVIS gives synonyms: strings "synonyms".
    """
    background = categories[0]["name"] == BACKGROUND
    raw = [str(category["name"]) for category in categories[background:]]
    plain = [_plain(name) for name in raw]
    names = tuple(plain if len({name.casefold() for name in plain}) == len(plain) else raw)
    said = [category.get("synonyms") for category in categories[background:]]
    strings = {"synonyms": _synonyms(names, said)} if all(said) else {}
    return ClassList(name, names, background, strings, source="the dataset's own JSON")


def _synonyms(names: tuple[str, ...], said: list[Any]) -> dict[str, list[str]]:
    """Each class with its own name first; a word that several classes claim stays with the first."""
    owner = {name.casefold(): name for name in names}
    strings = {}
    for name, words in zip(names, said, strict=True):
        plain = (_plain(word) for word in words)
        strings[name] = [name, *(word for word in plain if owner.setdefault(word.casefold(), name) == name)]
        strings[name] = list({word.casefold(): word for word in reversed(strings[name])}.values())[::-1]
    return strings


def _plain(name: str) -> str:
    """A category as one would say it: "wall-other-merged" is a wall, "aerosol_can" an aerosol can."""
    for mark in ("-merged", "-other", "-stuff"):
        name = name.removesuffix(mark)
    return name.replace("_", " ").replace("-", " ").strip()
