"""COCO's JSON, read and checked: contradictions are errors, oddities are warnings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from densevl.errors import DatasetError
from densevl.files import shown

_KEYS = {
    "categories": ("id", "name"),
    "images": ("id", "height", "width"),
    "annotations": ("image_id", "category_id", "segmentation"),
}
_ENOUGH = 1000
"""The number of polygons checked."""
_PANOPTIC_KEYS = ("image_id", "file_name", "segments_info")
Entry = Mapping[str, Any]
"""An entry of the JSON."""


def read_listing(path: Path, panoptic: bool) -> tuple[dict[str, Any], list[str]]:
    """Read COCO's JSON, with images, annotations and categories, and list its oddities.

    Raises:
        DatasetError: the file is unreadable, of another kind, or contradicts itself.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{shown(path)} cannot be read as JSON: {error}") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(isinstance(data.get(part), list) for part in parts):
        raise DatasetError(f"{shown(path)} is not a COCO file: it needs lists of {', '.join(parts)}")
    if not data["categories"]:
        raise DatasetError(f"{shown(path)} has no categories: there is nothing to look for")
    for part in parts:
        _need(path, part, data[part], _PANOPTIC_KEYS if panoptic and part == "annotations" else _KEYS[part])
    for entry in data["annotations"] if panoptic else ():
        _need(path, "segments_info", entry["segments_info"], ("id", "category_id"))
    return data, [f"{shown(path)}: {text}" for text in _looked_through(path, data, panoptic)]


def _need(path: Path, part: str, entries: Any, keys: tuple[str, ...]) -> None:
    if not isinstance(entries, list):
        raise DatasetError(f"{shown(path)} has {part} that are not a list: {str(entries)[:80]}")
    for entry in entries:
        absent = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if absent:
            raise DatasetError(f"{shown(path)} has an entry of {part} without {absent[0]}: {str(entry)[:80]}")
        if odd := [key for key in keys if key.endswith("id") and type(entry[key]) is not int]:
            raise DatasetError(
                f"{shown(path)} has an entry of {part} whose {odd[0]} is not a whole number: {str(entry)[:80]}"
            )


def _looked_through(path: Path, data: Mapping[str, Any], panoptic: bool) -> Iterable[str]:
    """The oddities of a listing.

    Raises:
        DatasetError: it contradicts itself.
    """
    images, categories = data["images"], data["categories"]
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    for part, entries in (("images", images), ("categories", categories)):
        _once(path, part, (entry["id"] for entry in entries))
    if panoptic:
        _once(path, "annotations", (entry["image_id"] for entry in data["annotations"]), "image_id")
        for entry in data["annotations"]:
            _once(path, f"segments of image {entry['image_id']}", (part["id"] for part in entry["segments_info"]))
    for image, size in sizes.items():
        if not all(type(side) is int and side > 0 for side in size):
            raise DatasetError(f"{shown(path)} gives image {image} a width and height of {size[0]} and {size[1]}")
    yield from _doubled("file names", (image.get("file_name") for image in images))
    if not panoptic:
        yield from _doubled("ids of annotations", (entry.get("id") for entry in data["annotations"]))
    strays = [entry["image_id"] for entry in data["annotations"] if entry["image_id"] not in sizes]
    if strays and len(strays) == len(data["annotations"]):
        raise DatasetError(f"{shown(path)} has only annotations of images that it does not list, {strays[0]} first")
    if strays:
        yield f"{len(strays)} annotations are of images that it does not list, {strays[0]} first; they are left out"
    parts = [
        (entry["image_id"], part)
        for entry in data["annotations"]
        for part in (entry["segments_info"] if panoptic else [entry])
    ]
    known = {category["id"] for category in categories}
    for image, part in parts:
        if part["category_id"] not in known:
            raise DatasetError(
                f"{shown(path)} has category {part['category_id']} in image {image}: it lists {len(known)} categories, "
                f"{min(known)} to {max(known)}"
            )
        if (crowd := part.get("iscrowd", 0)) not in (0, 1):
            raise DatasetError(f"{shown(path)} has an object in image {image} whose iscrowd is {crowd!r}: 0 or 1")
    if panoptic and (bare := len(sizes) - len({entry["image_id"] for entry in data["annotations"]} & sizes.keys())):
        yield f"{bare} of {len(sizes)} images have no annotation; they are left out"
    yield from _boxes(path, sizes, parts, panoptic)


def _once(path: Path, part: str, ids: Iterable[Any], what: str = "id") -> None:
    number, times = next(iter(Counter(ids).most_common(1)), (None, 0))
    if times > 1:
        raise DatasetError(f"{shown(path)} has {times} {part} of {what} {number}: each needs its own")


def _doubled(what: str, values: Iterable[Any]) -> Iterable[str]:
    doubled = [value for value, times in Counter(map(str, (v for v in values if v is not None))).items() if times > 1]
    if doubled:
        yield f"{len(doubled)} {what} appear twice, {doubled[0]} first"


def _boxes(
    path: Path, sizes: Mapping[Any, tuple[int, int]], parts: Iterable[tuple[Any, Entry]], panoptic: bool
) -> Iterable[str]:
    """Refuse boxes and polygons that are not in pixels; warn of boxes that leave their image."""
    outside, reach, first, polygons = 0, 0.0, None, 0
    for image, part in parts:
        if image not in sizes:
            continue
        (width, height), shape = sizes[image], None if panoptic else part.get("segmentation")
        try:
            x, y, wide, high = part.get("bbox") or (0, 0, 0, 0)
            if not (x > -2 and y > -2 and x + wide < width + 2 and y + high < height + 2):
                outside, first = outside + 1, first if first is not None else image
            if isinstance(shape, list) and polygons < _ENOUGH:
                polygons += len(shape)
                reach = max([reach, *(max(map(abs, polygon)) for polygon in shape)])
        except (TypeError, ValueError):
            continue  # reading it refuses an unusable mask
    if polygons and reach <= 1:
        raise DatasetError(f"{shown(path)} has polygons in shares of the image, none over {reach:g}: give pixels")
    if outside:
        yield f"{outside} objects have boxes outside their image, one in image {first} first"
