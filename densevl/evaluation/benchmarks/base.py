"""What a benchmark is: where it lies, which files it has, and how they become images with their truth.

Benchmarks are read as their publishers lay them out. Nothing is downloaded; what is absent is named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from densevl import digest
from densevl.cache import cache_dir
from densevl.errors import DatasetError, suggest
from densevl.evaluation.benchmarks.class_lists import ClassList
from densevl.files import shown
from densevl.images import is_turned, read_image

_Item = TypeVar("_Item")

SEMANTIC, INSTANCE, PANOPTIC, ANOMALY = TASKS = ("semantic", "instance", "panoptic", "anomaly")
DATA_VARIABLE = "DENSEVL_DATA"
HASHED = 2**28
"""Bytes of label files that are read to know them again: about a second."""
TURNED = "labels are taken to be those of the turned picture; where they are of the pixels as stored, store it upright"
Root = str | os.PathLike[str] | None


@dataclass(frozen=True)
class Item:
    """An image of a benchmark.

    Attributes:
        key: a path without ending, under which predictions are written.
        image: its file. label: the file of its truth, None where there is nothing to say (a flawless image).
    """

    key: str
    image: Path
    label: Path | None


@dataclass(frozen=True, eq=False)
class Sample:
    """An image that was read.

    Attributes:
        item: its files. image: uint8 RGB (H, W, 3).
        truth: by task: int16 (H, W), class index, -1 not scored; `coco.Objects`; `coco.PanopticMap`; bool (H, W).
        turned: whether the image was turned by its EXIF tag, so that labels might be those of the pixels as stored.
    """

    item: Any
    image: npt.NDArray[np.uint8]
    truth: Any
    turned: bool = False


@dataclass(frozen=True, eq=False)
class Dataset:
    """A benchmark that was found. Index it from 0 to `len` for a `Sample`.

    Attributes:
        benchmark: what it is; root: where it lies; classes: its class list; items: its files, in a fixed order.
        variant: the label rule, "" for the usual. warnings: what is odd about its files.
    """

    benchmark: Benchmark
    root: Path
    classes: ClassList
    items: tuple[Any, ...]
    variant: str = ""
    warnings: tuple[str, ...] = field(kw_only=True, default=())

    @property
    def name(self) -> str:
        """Of the benchmark."""
        return self.benchmark.name

    @property
    def note(self) -> str:
        """What a reader of results should know."""
        return self.benchmark.note

    @property
    def names(self) -> tuple[str, ...]:
        """Names by class index, background first where there is one."""
        return self.classes.all_names

    @property
    def listed(self) -> tuple[Any, ...]:
        """Everything that belongs to it, images to learn from included."""
        return self.items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        """Read an image and its truth; as `read`."""
        return self.read(self.items[index])

    def read(self, item: Any) -> Sample:
        """Read an image and its truth.

        Raises:
            DatasetError: a file is missing, of another size, or holds what the benchmark's rules do not know.
            ImageError: a file cannot be read.
        """
        if not item.image.exists():
            raise DatasetError(f"the image '{item.key}' is missing: {shown(item.image)}")
        image = read_image(item.image)
        turned = item.label is not None and item.image.suffix.lower() != ".png" and is_turned(item.image)
        try:
            return Sample(item, image, self.truth(item, image), turned)
        except DatasetError as error:
            hint = f" ({shown(item.image)} is turned by its EXIF tag; store it upright)" if turned else ""
            raise DatasetError(f"{error}{hint}") from error

    def truth(self, item: Any, image: npt.NDArray[np.uint8]) -> Any:
        """The truth of an image that was read."""
        raise NotImplementedError

    def digests(self) -> npt.NDArray[np.uint64]:
        """A number for each image that changes with its key and its files, wherever they lie: (N,).

        Of files the size counts, and of labels the content, unless there are more than `HASHED` bytes of them.
        """
        labels = dict.fromkeys(item.label for item in self.items if item.label is not None)
        sizes = {path: path.stat().st_size for path in labels if path.exists()}
        small = sum(sizes.values()) <= HASHED
        told = {path: digest.of_file(path) if small else str(size) for path, size in sizes.items()}
        texts = (
            digest.of_text(
                item.key,
                str(item.image.stat().st_size) if item.image.exists() else "",
                told.get(item.label, ""),
            )
            for item in self.items
        )
        return np.array([int(text[:16], 16) for text in texts], np.uint64)

    def subset(self, limit: int | None) -> Self:
        """The first `limit` images, spread evenly over the dataset's order; all for None.

        Raises:
            DatasetError: a limit under 1.
        """
        if limit is None or limit >= len(self):
            return self
        if limit < 1:
            raise DatasetError(f"a limit of {limit} images leaves nothing to evaluate; give 1 or more")
        return replace(self, items=self._some(limit))

    def _some(self, limit: int) -> tuple[Item, ...]:
        return evenly(self.items, limit)


def evenly(items: Sequence[_Item], count: int) -> tuple[_Item, ...]:
    """So many of some, at even steps."""
    return tuple(items[index * len(items) // count] for index in range(count))


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A benchmark, for one task.

    Attributes:
        name, task: as an experiment names them. folder: where it usually lies below a data folder.
        files: what lies below its folder, as lines to read. marks: patterns, one of which has a match where it lies.
        opens: from the benchmark, its place and a variant to the dataset.
        expected: images of the evaluation split, None where that varies. note: what a reader of results should know.
        variants: other rules for its labels.
    """

    name: str
    task: str
    folder: str
    files: tuple[str, ...]
    marks: tuple[str, ...]
    opens: Callable[[Benchmark, Path, str], Dataset]
    expected: int | None = None
    note: str = ""
    variants: tuple[str, ...] = ()

    def find(self, root: Root = None) -> tuple[Path | None, list[Path]]:
        """Where it lies, None where it was not found; and all places looked at.

        Args:
            root: its folder, or one that has it; None looks in $DENSEVL_DATA, ./data and the cache folder.
        """
        if root is not None:
            given = Path(root)
            looked = list(dict.fromkeys([given, given / Path(self.folder).name, given / self.folder]))
        else:
            data = os.environ.get(DATA_VARIABLE)
            looked = [base / self.folder for base in (*([Path(data)] if data else []), Path("data"), cache_dir())]
        found = (place for place in looked for mark in self.marks if next(place.glob(mark), None) is not None)
        return next(found, None), looked

    def open(self, root: Root = None, variant: str = "") -> Dataset:
        """Find it and read the list of its files; `root` as in `find`.

        Raises:
            DatasetError: not found, empty, or no such variant; the message lists the expected files.
        """
        place, looked = self.find(root)
        if place is None:
            raise DatasetError(
                f"'{self.name}' was not found; looked in {', '.join(map(shown, looked))}; "
                f"expected there: {'; '.join(self.files)}"
            )
        if variant and variant not in self.variants:
            has = ", ".join(self.variants) or "none"
            raise DatasetError(
                f"'{self.name}' has no label rule '{variant}'{suggest(variant, self.variants)}; it has {has}"
            )
        return self.opens(self, place, variant)


def label_file(item: Item) -> Path:
    """The file with the truth of an image.

    Raises:
        DatasetError: it is missing.
    """
    if item.label is None or not item.label.exists():
        raise DatasetError(f"the labels of {shown(item.image)} are missing: {shown(item.label or item.key)}")
    return item.label


def same_size(label: Path, truth: npt.NDArray[Any], image: npt.NDArray[np.uint8]) -> None:
    """Refuse labels of another size than their image.

    Raises:
        DatasetError: they are.
    """
    sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (truth, image)]
    if sizes[0] != sizes[1]:
        raise DatasetError(
            f"{shown(label)} is {sizes[0]} and its image {sizes[1]}: labels are never resized, give them at the "
            "image's size"
        )
