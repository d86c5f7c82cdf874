"""Instance and panoptic benchmarks in the layouts of COCO and LVIS, read one image at a time. Nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from densevl.errors import DatasetError
from densevl.evaluation.benchmarks.class_lists import ClassList
from densevl.evaluation.benchmarks.datasets import places, spread
from densevl.evaluation.benchmarks.layouts import Item
from densevl.evaluation.benchmarks.region_specs import RegionSpec, class_list_of, read_listing, region_spec
from densevl.evaluation.metrics.panoptic import VOID, Segment, coco_ids
from densevl.files import shown
from densevl.images import read_image

Rle = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Objects:
    """Instances of an image, N of them.

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


@dataclass(frozen=True, eq=False)
class RegionSample:
    """Attributes: item, the files; image uint8 RGB (H, W, 3); truth by task."""

    item: Item
    image: npt.NDArray[np.uint8]
    truth: Objects | PanopticMap


@dataclass(frozen=True, eq=False)
class RegionDataset:
    """A benchmark that was found. Index it from 0 to `len` for a `RegionSample`.

    Attributes:
        spec: what it is; root: where it lies; classes: its class list.
        items: its files, by image id; an instance benchmark has its JSON as the label of each.
        categories: the JSON's entry of each class index, background included.
        images, annotations: the JSON's entries for each item.
    """

    spec: RegionSpec
    root: Path
    classes: ClassList
    items: tuple[Item, ...]
    categories: tuple[Mapping[str, Any], ...] = field(repr=False)
    images: tuple[Mapping[str, Any], ...] = field(repr=False)
    annotations: tuple[Sequence[Mapping[str, Any]], ...] = field(repr=False)
    variant: str = ""

    @property
    def name(self) -> str:
        """Of the benchmark."""
        return self.spec.name

    @property
    def note(self) -> str:
        """What a reader of results should know."""
        return self.spec.note

    @property
    def names(self) -> tuple[str, ...]:
        """Names by class index, background first where there is one."""
        return self.classes.all_names

    @property
    def things(self) -> tuple[bool, ...]:
        """Whether a class is countable, by class index; True where the JSON does not say."""
        return tuple(bool(category.get("isthing", 1)) for category in self.categories)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> RegionSample:
        """Read an image and its truth.

        Raises:
            DatasetError: a file is missing, of another size, or holds categories or ids that are not described.
            ImageError: a file cannot be read.
        """
        item = self.items[index]
        if not item.image.exists():
            raise DatasetError(f"the image '{item.key}' of {shown(item.label)} is missing: {shown(item.image)}")
        image = read_image(item.image)
        size = (image.shape[0], image.shape[1])
        truth = self._segments(index, size) if self.spec.maps else self._objects(index, size)
        return RegionSample(item, image, truth)

    def subset(self, limit: int | None) -> RegionDataset:
        """The first `limit` images, spread evenly over the dataset's order; all for None.

        Raises:
            DatasetError: a limit under 1.
        """
        if limit is None or limit >= len(self):
            return self
        chosen = spread(limit, len(self))
        return replace(
            self,
            items=tuple(self.items[index] for index in chosen),
            images=tuple(self.images[index] for index in chosen),
            annotations=tuple(self.annotations[index] for index in chosen),
        )

    def truth(self) -> dict[str, Any]:
        """The truth of all its images as COCO's JSON has it, for measures that need everything at once.

        Raises:
            DatasetError: an annotation is of no mask.
        """
        annotations: list[dict[str, Any]] = []
        for index, image in enumerate(self.images):
            size = (int(image["height"]), int(image["width"]))
            for entry in self.annotations[index]:
                full = {"iscrowd": 0, **entry, "id": len(annotations) + 1}
                if "area" not in full:
                    full["area"] = float(coco_mask.area(self._rle(index, entry, size)))
                annotations.append(full)
        return {"images": list(self.images), "categories": list(self.categories), "annotations": annotations}

    @cached_property
    def _numbers(self) -> dict[Any, int]:
        return {entry["id"]: number for number, entry in enumerate(self.categories)}

    def _index(self, index: int, category: Any) -> int:
        if category in self._numbers:
            return self._numbers[category]
        ids = list(self._numbers)
        raise DatasetError(
            f"{shown(self.items[index].label)} has category {category} in image '{self.items[index].key}': it lists "
            f"{len(ids)} categories, {min(ids)} to {max(ids)}"
        )

    def _objects(self, index: int, size: tuple[int, int]) -> Objects:
        entries, told = self.annotations[index], self.images[index]
        if size != (int(told["height"]), int(told["width"])):
            raise DatasetError(
                f"image '{self.items[index].key}' is {size[1]}x{size[0]} and {shown(self.items[index].label)} says "
                f"{told['width']}x{told['height']}: masks are never resized"
            )
        return Objects(
            np.array([self._index(index, entry["category_id"]) for entry in entries], np.int64),
            np.array([bool(entry.get("iscrowd", 0)) for entry in entries], bool),
            tuple(self._rle(index, entry, size) for entry in entries),
        )

    def _rle(self, index: int, entry: Mapping[str, Any], size: tuple[int, int]) -> Rle:
        """Polygons, run lengths or COCO's string to compressed RLE."""
        shape = entry.get("segmentation")
        try:
            if isinstance(shape, list):
                return dict(coco_mask.merge(coco_mask.frPyObjects(shape, *size)))
            if isinstance(shape["counts"], list):  # type: ignore[index]
                shape = coco_mask.frPyObjects(shape, *size)
            if tuple(shape["size"]) != size:  # type: ignore[index]
                raise ValueError(f"of size {shape['size']}")  # type: ignore[index]
            return dict(shape)  # type: ignore[arg-type]
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise DatasetError(
                f"{shown(self.items[index].label)} has no usable mask in image '{self.items[index].key}' ({error}); "
                f"give polygons or RLE of {size[0]} rows and {size[1]} columns"
            ) from error

    def _segments(self, index: int, size: tuple[int, int]) -> PanopticMap:
        item = self.items[index]
        if not item.label.exists():
            raise DatasetError(f"the labels of {shown(item.image)} are missing: {shown(item.label)}")
        ids = coco_ids(read_image(item.label))
        if ids.shape != size:
            raise DatasetError(
                f"{shown(item.label)} is {ids.shape[1]}x{ids.shape[0]} and its image {size[1]}x{size[0]}: labels are "
                "never resized, give them at the image's size"
            )
        segments = tuple(
            Segment(int(entry["id"]), self._index(index, entry["category_id"]), bool(entry.get("iscrowd", 0)))
            for entry in self.annotations[index]
        )
        odd = {int(number) for number in np.unique(ids)} ^ ({VOID} | {segment.id for segment in segments})
        if odd - {VOID}:
            raise DatasetError(f"{shown(item.label)}: segment {min(odd - {VOID})} is in the PNG or the JSON, not both")
        return PanopticMap(ids, segments)


def find_regions(spec: RegionSpec, root: str | os.PathLike[str] | None) -> tuple[Path | None, list[Path]]:
    """The first place that has the JSON, and all places looked at."""
    looked = places(spec.folder, root)
    return next((place for place in looked if _listing(spec, place) is not None), None), looked


def open_regions(name: str, task: str, root: str | os.PathLike[str] | None = None) -> RegionDataset:
    """Find a benchmark on disk.

    Args:
        name: of `REGION_SPECS` for the task, "instance" or "panoptic"; "folder" is any folder with images/,
            instances.json, or panoptic.json and panoptic/.
        root: its folder; None looks in $DENSEVL_DATA, ./data and the cache folder.

    Raises:
        DatasetError: unknown, not found, or empty; the message lists the expected layout.
    """
    spec = region_spec(name, task)
    place, looked = find_regions(spec, root)
    listing = _listing(spec, place) if place is not None else None
    if place is None or listing is None:
        raise DatasetError(
            f"'{name}' for task {task} was not found; looked in {', '.join(map(shown, looked))}; "
            f"expected there: {'; '.join(spec.expected_files())}"
        )
    data = read_listing(listing, bool(spec.maps))
    by_image: dict[Any, list[Mapping[str, Any]]] = {}
    for entry in data["annotations"]:
        by_image.setdefault(entry.get("image_id"), []).extend(entry["segments_info"] if spec.maps else [entry])
    maps = {entry["image_id"]: entry["file_name"] for entry in data["annotations"]} if spec.maps else {}
    images = sorted(data["images"], key=lambda image: image["id"])
    if spec.maps:
        images = [image for image in images if image["id"] in maps]
    if not images:
        raise DatasetError(f"the split is empty: {shown(listing)} names no image")
    items = []
    for image in images:
        file = _image(spec, place, image)
        label = place / spec.maps / maps[image["id"]] if spec.maps else listing
        items.append(Item(_key(listing, str(image.get("file_name", file.name))), file, label))
    return RegionDataset(
        spec,
        place,
        class_list_of(name, data["categories"]),
        tuple(items),
        tuple(data["categories"]),
        tuple(images),
        tuple(by_image.get(image["id"], []) for image in images),
    )


def _key(listing: Path, name: str) -> str:
    """A file name without its ending; predictions are written under it.

    Raises:
        DatasetError: it leads out of the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DatasetError(f"{shown(listing)} names the image '{name}', which leads out of the folder of images")
    return path.with_suffix("").as_posix()


def _listing(spec: RegionSpec, place: Path) -> Path | None:
    return next((place / name for name in spec.listing if (place / name).is_file()), None)


def _image(spec: RegionSpec, place: Path, image: Mapping[str, Any]) -> Path:
    """Where an image lies; LVIS names only COCO's address, whose last parts are folder and file."""
    parts = [str(image["file_name"])] if "file_name" in image else str(image["coco_url"]).split("/")[-2:]
    tried = [place / folder / parts[-1] for folder in spec.images]
    tried.sort(key=lambda path: path.parent.name != parts[0])  # the folder of the address first
    found = next((path for path in tried if path.exists()), None)
    # A name with folders is below the image folder.
    below = place / spec.images[0] / Path(*parts)
    return found or (below if below.exists() else tried[0])
