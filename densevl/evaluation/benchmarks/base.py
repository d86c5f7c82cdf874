"""The description of a benchmark: where it lies, which files it has, and how they become images with their truth.

Benchmarks are read in their publishers' layout. Nothing is downloaded; error messages name what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from densevl import digest
from densevl.cache import cache_dir
from densevl.errors import DatasetError, suggest
from densevl.evaluation.benchmarks.class_lists import ClassList
from densevl.files import shown
from densevl.images import header, read_image
from densevl.images.pixels import QUARTER_TURNS, upright

_Item = TypeVar("_Item")

SEMANTIC, INSTANCE, PANOPTIC, ANOMALY = TASKS = ("semantic", "instance", "panoptic", "anomaly")
DATA_VARIABLE = "DENSEVL_DATA"
HASHED = 2**28
"""Label files up to this many bytes are hashed, which takes about a second."""
Root = str | os.PathLike[str] | None


@dataclass(frozen=True)
class Item:
    """An image of a benchmark.

    Attributes:
        key: a path without ending, under which predictions are written.
        image: its file. label: the file of its truth, None if there is none (a flawless image).
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
    """

    item: Any
    image: npt.NDArray[np.uint8]
    truth: Any


@dataclass(frozen=True, eq=False)
class Dataset:
    """A benchmark found on disk. Index it from 0 to `len` for a `Sample`.

    Attributes:
        benchmark: its description; root: its folder; classes: its class list; items: its files, in a fixed order.
        variant: the label rule, "" for the default. warnings: oddities of its files.
        cut: whether there are more images than these. bits: of 16-bit images, as `read_image` takes them.
        exif: for images turned by an EXIF tag, whether label maps match the pixels as "stored" or the "upright"
            picture. "auto" decides by the size of the label map, then by that of other images, else "upright".
    """

    benchmark: Benchmark
    root: Path
    classes: ClassList
    items: tuple[Any, ...]
    variant: str = ""
    warnings: tuple[str, ...] = field(kw_only=True, default=())
    exif: str = field(kw_only=True, default="auto")
    cut: bool = field(kw_only=True, default=False)
    bits: int | None = field(kw_only=True, default=None)

    @property
    def name(self) -> str:
        """Name of the benchmark."""
        return self.benchmark.name

    @property
    def note(self) -> str:
        """Note for readers of results."""
        return self.benchmark.note

    @property
    def names(self) -> tuple[str, ...]:
        """Names by class index, background first where there is one."""
        return self.classes.all_names

    @property
    def listed(self) -> tuple[Any, ...]:
        """Everything that belongs to it, including images to learn from."""
        return self.items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        """Read an image and its truth; see `read`."""
        return self.read(self.items[index])

    def read(self, item: Any) -> Sample:
        """Read an image and its truth.

        Raises:
            DatasetError: a file is missing, has another size, or holds values unknown to the benchmark's rules.
            ImageError: a file cannot be read.
        """
        if not item.image.exists():
            raise DatasetError(f"the image '{item.key}' is missing: {shown(item.image)}")
        image, turn = read_image(item.image, bits=self.bits), header(item.image).turn
        if turn == 1:
            return Sample(item, image, self.truth(item, image))
        if self.labels_as_stored(item):
            stored = image.swapaxes(0, 1) if turn in QUARTER_TURNS else image
            return Sample(item, image, np.ascontiguousarray(upright(self.truth(item, stored), turn)))
        try:
            return Sample(item, image, self.truth(item, image))
        except DatasetError as error:
            raise DatasetError(f"{error} ({shown(item.image)} is turned by its EXIF tag; store it upright)") from error

    def labels_as_stored(self, item: Any) -> bool:
        """Whether the label map of an image with an EXIF rotation matches the pixels as stored."""
        if not self.has_maps or item.label is None or self.exif != "auto":
            return self.has_maps and self.exif == "stored"
        by_size = self._told_by_size(item)
        return by_size if by_size is not None else self._usually_stored

    @cached_property
    def _usually_stored(self) -> bool:
        answers = {self._told_by_size(item) for item in self.listed if item.label is not None and item.image.exists()}
        return True in answers and False not in answers

    def _told_by_size(self, item: Any) -> bool | None:
        """The same if sizes decide it, otherwise None."""
        picture = header(item.image)
        if picture.turn not in QUARTER_TURNS or picture.size[0] == picture.size[1] or not item.label.exists():
            return None
        size = header(item.label).size
        return {picture.size: True, picture.size[::-1]: False}.get(size)

    @property
    def has_maps(self) -> bool:
        """Whether the truth of an image is an array (H, W) that can be rotated with it."""
        return self.benchmark.task in (SEMANTIC, ANOMALY)

    def truth(self, item: Any, image: npt.NDArray[np.uint8]) -> Any:
        """The truth of an image that was read."""
        raise NotImplementedError

    def digests(self) -> npt.NDArray[np.uint64]:
        """A number for each image that changes with its key and its files, wherever they lie: (N,).

        It covers the size of files and the content of labels, unless these have more than `HASHED` bytes.
        """
        labels = dict.fromkeys(item.label for item in self.items if item.label is not None)
        sizes = {path: path.stat().st_size for path in labels if path.exists()}
        small = sum(sizes.values()) <= HASHED
        hashes = {path: digest.of_file(path) if small else str(size) for path, size in sizes.items()}
        texts = (
            digest.of_text(
                item.key,
                str(item.image.stat().st_size) if item.image.exists() else "",
                hashes.get(item.label, ""),
            )
            for item in self.items
        )
        return np.array([int(text[:16], 16) for text in texts], np.uint64)

    def subset(self, limit: int | None) -> Self:
        """The first `limit` images, spread evenly over the dataset's order; all for None.

        Raises:
            DatasetError: the limit is under 1.
        """
        if limit is None or limit >= len(self):
            return self
        if limit < 1:
            raise DatasetError(f"a limit of {limit} images leaves nothing to evaluate; give 1 or more")
        return replace(self, items=self._some(limit), cut=True)

    def _some(self, limit: int) -> tuple[Item, ...]:
        return evenly(self.items, limit)


def evenly(items: Sequence[_Item], count: int) -> tuple[_Item, ...]:
    """Take `count` items at even steps."""
    return tuple(items[index * len(items) // count] for index in range(count))


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A benchmark, for one task.

    Attributes:
        name, task: as an experiment names them. folder: its usual place below a data folder.
        files: its files below that folder, as readable lines. marks: patterns, one of which matches in its folder.
        opens: from the benchmark, its place, a variant and rules to the dataset.
        expected: images of the evaluation split, None where that varies. note: a note for readers of results.
        variants: other rules for its labels, by name. rules: keys of rules that a user may give (see `own`).
    """

    name: str
    task: str
    folder: str
    files: tuple[str, ...]
    marks: tuple[str, ...]
    opens: Callable[[Benchmark, Path, str, Mapping[str, Any]], Dataset]
    expected: int | None = None
    note: str = ""
    variants: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()

    def find(self, root: Root = None) -> tuple[Path | None, list[Path]]:
        """Return its folder, None if it was not found, and all places searched.

        Args:
            root: its folder, or one that contains it; None looks in $DENSEVL_DATA, ./data and the cache folder.
        """
        if root is not None:
            given = Path(root)
            looked = list(dict.fromkeys([given, given / Path(self.folder).name, given / self.folder]))
        else:
            data = os.environ.get(DATA_VARIABLE)
            looked = [base / self.folder for base in (*([Path(data)] if data else []), Path("data"), cache_dir())]
        found = (place for place in looked for mark in self.marks if next(place.glob(mark), None) is not None)
        return next(found, None), looked

    def require(self, rules: Iterable[str]) -> None:
        """Refuse rules that do not apply to it.

        Raises:
            DatasetError: there are some.
        """
        for key in rules:
            if key not in self.rules:
                has = "labels of its own rule" if self.task == SEMANTIC else "no such rule"
                raise DatasetError(f"'{self.name}' ({self.task}) has {has}, so '{key}' is not for it; leave it out")

    def open(self, root: Root = None, variant: str = "", rules: Mapping[str, Any] | None = None) -> Dataset:
        """Find it and read the list of its files; `root` as in `find`, `rules` as `open_dataset` takes them.

        Raises:
            DatasetError: it is not found or empty, or has no such variant or rule; the message lists expected files.
        """
        self.require(rules or ())
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
        return self.opens(self, place, variant, rules or {})


def label_file(item: Item) -> Path:
    """The file with the truth of an image.

    Raises:
        DatasetError: it is missing.
    """
    if item.label is None or not item.label.exists():
        raise DatasetError(f"the labels of {shown(item.image)} are missing: {shown(item.label or item.key)}")
    return item.label


def same_size(label: Path, truth: npt.NDArray[Any], image: npt.NDArray[np.uint8]) -> None:
    """Refuse labels whose size differs from their image's.

    Raises:
        DatasetError: the sizes differ.
    """
    sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (truth, image)]
    if sizes[0] != sizes[1]:
        raise DatasetError(
            f"{shown(label)} is {sizes[0]} and its image {sizes[1]}: labels are never resized, give them at the "
            "image's size"
        )
