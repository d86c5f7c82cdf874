"""Instance and panoptic benchmarks in the layouts of COCO and LVIS, read one image at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from densevl.errors import DatasetError
from densevl.evaluation.benchmarks.base import (
    INSTANCE,
    PANOPTIC,
    Benchmark,
    Dataset,
    Item,
    label_file,
    same_size,
)
from densevl.evaluation.benchmarks.class_lists import BACKGROUND, ClassList
from densevl.evaluation.benchmarks.listing import Entry, read_listing
from densevl.evaluation.metrics.panoptic import VOID, Segment, coco_ids
from densevl.files import shown
from densevl.images import read_image

Rle = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Objects:
    """N instances of an image.

    Attributes: labels int64 (N,), class index; crowd bool (N,), a region of many objects; masks, N compressed COCO RLE.
    """

    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    masks: tuple[Rle, ...]


@dataclass(frozen=True, eq=False)
class PanopticMap:
    """Attributes: ids int64 (H, W), 0 is void; segments, a description of every id."""

    ids: npt.NDArray[np.int64]
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class CocoItem(Item):
    """Attributes: entry: the JSON's description of the image; annotations: its objects or segments."""

    entry: Entry = field(kw_only=True, repr=False)
    annotations: Sequence[Entry] = field(kw_only=True, repr=False)


@dataclass(frozen=True, eq=False)
class CocoDataset(Dataset):
    """Images with instances or segments; its items are sorted by image id.

    Attributes:
        listing: the JSON. categories: its entry for each class index, including background.
        federated: whether categories were searched for in some images only (LVIS).
    """

    listing: Path = field(kw_only=True)
    categories: tuple[Entry, ...] = field(kw_only=True, repr=False)
    federated: bool = field(kw_only=True, default=False)

    @property
    def things(self) -> tuple[bool, ...]:
        """Whether a class is countable, by class index; True where the JSON does not say."""
        return tuple(bool(category.get("isthing", 1)) for category in self.categories)

    def truth(self, item: CocoItem, image: npt.NDArray[np.uint8]) -> Objects | PanopticMap:
        """The objects or segments of an image.

        Raises:
            DatasetError: a file is missing, has another size, or holds categories or ids that are not described.
            ImageError: the panoptic map cannot be read.
        """
        return self._objects(item, image) if self.benchmark.task == INSTANCE else self._segments(item, image)

    def as_coco(self) -> dict[str, Any]:
        """The truth of all its images as COCO's JSON, for measures that need everything at once.

        Raises:
            DatasetError: an annotation has no usable mask.
        """
        annotations: list[dict[str, Any]] = []
        for item in self.items:
            size = (int(item.entry["height"]), int(item.entry["width"]))
            for entry in item.annotations:
                full = {"iscrowd": 0, **entry, "id": len(annotations) + 1}
                if "area" not in full:
                    full["area"] = float(coco_mask.area(self._rle(item, entry, size)))
                annotations.append(full)
        images = [item.entry for item in self.items]
        return {"images": images, "categories": list(self.categories), "annotations": annotations}

    @cached_property
    def _numbers(self) -> dict[Any, int]:
        return {entry["id"]: number for number, entry in enumerate(self.categories)}

    def _objects(self, item: CocoItem, image: npt.NDArray[np.uint8]) -> Objects:
        size, record = (image.shape[0], image.shape[1]), item.entry
        if size != (int(record["height"]), int(record["width"])):
            raise DatasetError(
                f"image '{item.key}' is {size[1]}x{size[0]} and {shown(self.listing)} says "
                f"{record['width']}x{record['height']}: masks are never resized"
            )
        return Objects(
            np.array([self._numbers[entry["category_id"]] for entry in item.annotations], np.int64),
            np.array([bool(entry.get("iscrowd", 0)) for entry in item.annotations], bool),
            tuple(self._rle(item, entry, size) for entry in item.annotations),
        )

    def _rle(self, item: CocoItem, entry: Entry, size: tuple[int, int]) -> Rle:
        """Convert polygons, run lengths or COCO's string to compressed RLE."""
        shape: Any = entry.get("segmentation")
        try:
            if isinstance(shape, list):
                if not shape:
                    raise ValueError("no polygon")
                if not all(np.abs(np.asarray(part, np.float64)).max() <= FAR for part in shape):
                    raise ValueError("a polygon far outside")
                return dict(coco_mask.merge(coco_mask.frPyObjects(shape, *size)))
            if isinstance(shape["counts"], list):
                shape = coco_mask.frPyObjects(shape, *size)
            if tuple(shape["size"]) != size:
                raise ValueError(f"of size {shape['size']}")
            return dict(shape)
        except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise DatasetError(
                f"{shown(self.listing)} has no usable mask in image '{item.key}' ({error}); "
                f"give polygons or RLE of {size[0]} rows and {size[1]} columns"
            ) from error

    def _segments(self, item: CocoItem, image: npt.NDArray[np.uint8]) -> PanopticMap:
        label = label_file(item)
        ids = coco_ids(read_image(label))
        same_size(label, ids, image)
        segments = tuple(
            Segment(int(entry["id"]), self._numbers[entry["category_id"]], bool(entry.get("iscrowd", 0)))
            for entry in item.annotations
        )
        odd = ({int(number) for number in np.unique(ids)} ^ {segment.id for segment in segments}) - {VOID}
        if odd:
            raise DatasetError(f"{shown(label)}: segment {min(odd)} is in the PNG or the JSON, not both")
        return PanopticMap(ids, segments)


def _benchmark(
    name: str,
    task: str,
    folder: str,
    listing: tuple[str, ...],
    images: tuple[str, ...],
    maps: str = "",
    expected: int | None = None,
    note: str = "",
    federated: bool = False,
) -> Benchmark:
    """A benchmark in COCO's formats.

    Args:
        listing: the JSON, places tried in order. images: folders of images, tried in order for each image.
        maps: the folder of panoptic PNGs, "" for instances.
    """

    def opens(benchmark: Benchmark, root: Path, variant: str, rules: Mapping[str, Any]) -> Dataset:
        file = next(root / own for own in listing if (root / own).is_file())
        data, odd = read_listing(file, bool(maps))
        by_image: dict[Any, list[Entry]] = {}
        for entry in data["annotations"]:
            by_image.setdefault(entry.get("image_id"), []).extend(entry["segments_info"] if maps else [entry])
        pictures = {entry["image_id"]: str(entry["file_name"]) for entry in data["annotations"]} if maps else {}
        for name_of_map in pictures.values():
            _key(file, name_of_map)
        items = []
        for image in sorted(data["images"], key=lambda image: image["id"]):
            if maps and image["id"] not in pictures:
                continue
            picture = _image(root, images, image)
            key = _key(file, str(image.get("file_name", picture.name)))
            label = root / maps / pictures[image["id"]] if maps else file
            annotations = tuple(by_image.get(image["id"], []))
            items.append(CocoItem(key, picture, label, entry=image, annotations=annotations))
        if not items:
            raise DatasetError(f"the split is empty: {shown(file)} names no image")
        known, categories = _class_list(name, data["categories"]), tuple(data["categories"])
        return CocoDataset(
            benchmark,
            root,
            known,
            tuple(items),
            listing=file,
            categories=categories,
            federated=federated,
            warnings=tuple(odd),
        )

    files = (" or ".join(listing), " or ".join(f"{own}/*" for own in images), *([f"{maps}/*.png"] if maps else []))
    return Benchmark(name, task, folder, files, listing, opens, expected, note)


def _image(root: Path, folders: Sequence[str], image: Entry) -> Path:
    """Path of an image; LVIS gives only COCO's URL, whose last parts are folder and file."""
    parts = [str(image["file_name"])] if "file_name" in image else str(image["coco_url"]).split("/")[-2:]
    tried = [root / folder / parts[-1] for folder in folders]
    tried.sort(key=lambda path: path.parent.name != parts[0])  # the folder in the URL first
    found = next((path for path in tried if path.exists()), None)
    below = root / folders[0] / Path(*parts)  # a name with folders is below the image folder
    return found or (below if below.exists() else tried[0])


def _key(listing: Path, name: str) -> str:
    """A file name without its ending, under which predictions are written.

    Raises:
        DatasetError: it leads out of the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DatasetError(f"{shown(listing)} names the image '{name}', which leads out of the folder of images")
    return path.with_suffix("").as_posix()


FAR = 2**17
"""Pixels from the corner that a polygon may reach; somewhere beyond, pycocotools runs out of memory."""


def _class_list(name: str, categories: list[dict[str, Any]]) -> ClassList:
    """Categories as classes in the order of the file; one called "background" comes first and has no string.

    LVIS's synonyms become the strings "synonyms".
    """
    background = categories[0]["name"] == BACKGROUND
    raw = [str(category["name"]) for category in categories[background:]]
    plain = [_plain(name) for name in raw]
    names = tuple(plain if len({name.casefold() for name in plain}) == len(plain) else raw)
    synonyms = [category.get("synonyms") for category in categories[background:]]
    strings = {"synonyms": _synonyms(names, synonyms)} if all(synonyms) else {}
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
    """A category in plain words: "wall-other-merged" is a wall, "aerosol_can" an aerosol can."""
    for mark in ("-merged", "-other", "-stuff"):
        name = name.removesuffix(mark)
    return name.replace("_", " ").replace("-", " ").strip()


_PHOTOS = ("val2017", "images/val2017", "images", "train2017", "images/train2017")
_RENDERED = "flat drawings: a regression check of methods, no evidence about photographs"


def _both(name: str, folder: str, expected: int | None, note: str = "") -> tuple[Benchmark, Benchmark]:
    """A folder in densevl's own layout: images/, instances.json, panoptic.json and panoptic/."""
    return (
        _benchmark(name, INSTANCE, folder, ("instances.json",), ("images",), "", expected, note),
        _benchmark(name, PANOPTIC, folder, ("panoptic.json",), ("images",), "panoptic", expected, note),
    )


BENCHMARKS = (
    _benchmark("coco", INSTANCE, "coco", ("annotations/instances_val2017.json",), _PHOTOS, "", 5000),
    _benchmark(
        *("coco", PANOPTIC, "coco", ("annotations/panoptic_val2017.json",), _PHOTOS),
        "annotations/panoptic_val2017",
        5000,
        "names of stuff without the marks -merged, -other and -stuff",
    ),
    _benchmark(
        *("lvis", INSTANCE, "lvis", ("lvis_v1_val.json", "annotations/lvis_v1_val.json"), _PHOTOS),
        expected=19809,
        note="federated: a category counts only in images where it was looked for",
        federated=True,
    ),
    *_both("rendered", "benchmark/scenes", 200, _RENDERED),
    *_both("rendered2x", "benchmark/scenes2x", 200, f"{_RENDERED}, of twice the side"),
    *_both("folder", ".", None),
)
