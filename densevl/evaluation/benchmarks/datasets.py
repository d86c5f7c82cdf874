"""A benchmark at a place on disk: found, checked, read one image at a time. Nothing is downloaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densevl.cache import cache_dir
from densevl.errors import DatasetError, suggest
from densevl.evaluation.benchmarks.class_lists import ClassList
from densevl.evaluation.benchmarks.label_rules import ILLEGAL, SIZE, Table
from densevl.evaluation.benchmarks.layouts import Item
from densevl.evaluation.benchmarks.semantic import SPECS, Spec, spec
from densevl.files import shown
from densevl.images import read_image, read_labels

DATA_VARIABLE = "DENSEVL_DATA"


@dataclass(frozen=True, eq=False)
class Sample:
    """Attributes: item, the files; image uint8 RGB (H, W, 3); truth int16 (H, W), class index, -1 not scored."""

    item: Item
    image: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A benchmark that was found. Index it from 0 to `len` for a `Sample`.

    Attributes:
        name: of the benchmark; root: where it lies; classes: its class list; items: its files, in a fixed order.
        variant: the label rule, "" for the usual; note: what a reader of results should know.
    """

    name: str
    root: Path
    classes: ClassList
    items: tuple[Item, ...]
    table: Table = field(repr=False)
    variant: str = ""
    note: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names by class index, background first where there is one."""
        return self.classes.all_names

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        """Read a pair.

        Raises:
            DatasetError: the label file is missing, of another size, or holds numbers outside the rules.
            ImageError: a file cannot be read.
        """
        item = self.items[index]
        if not item.image.exists():
            raise DatasetError(f"the image of {shown(item.label)} is missing: {shown(item.image)}")
        image = read_image(item.image)
        truth = self.truth(item)
        if truth.shape != image.shape[:2]:
            raise DatasetError(
                f"{shown(item.label)} is {_size(truth)} and its image {_size(image)}: labels are never resized, "
                "give them at the image's size"
            )
        return Sample(item, image, truth)

    def truth(self, item: Item) -> npt.NDArray[np.int16]:
        """The label map of a pair by the benchmark's rule: int16 (H, W), class index, -1 where not scored.

        Raises:
            DatasetError: missing, or numbers outside the rule. ImageError: unreadable.
        """
        if not item.label.exists():
            raise DatasetError(f"the labels of {shown(item.image)} are missing: {shown(item.label)}")
        raw = read_labels(item.label)
        if raw.min() < 0 or raw.max() >= SIZE:
            raise DatasetError(f"{shown(item.label)} holds {raw.min()} to {raw.max()}: label ids are 0 to {SIZE - 1}")
        truth = self.table.astype(np.int16).take(raw) if raw.size > SIZE else self.table.take(raw).astype(np.int16)
        if truth.min() == ILLEGAL:  # the least number there is
            wrong = truth == ILLEGAL
            known = np.flatnonzero(self.table >= 0)
            raise DatasetError(
                f"{shown(item.label)} holds label {raw[wrong][0]} at {int(wrong.sum())} pixels: '{self.name}' has "
                f"{len(self.names)} classes, stored as {known.min()} to {known.max()}"
            )
        if self.name == "ovcamo":  # the mask says where, the listing says what
            index = self.names.index(item.key.split("/")[0])
            truth = np.where(truth > 0, np.int16(index), truth)
        return truth

    def subset(self, limit: int | None) -> Dataset:
        """The first `limit` pairs, spread evenly over the dataset's order; all for None.

        Raises:
            DatasetError: a limit under 1.
        """
        if limit is None or limit >= len(self):
            return self
        chosen = [self.items[index] for index in spread(limit, len(self))]
        return Dataset(self.name, self.root, self.classes, tuple(chosen), self.table, self.variant, self.note)


def names() -> tuple[str, ...]:
    """The segmentation benchmarks there are readers for."""
    return tuple(SPECS)


def open_dataset(name: str, root: str | os.PathLike[str] | None = None, *, variant: str = "") -> Dataset:
    """Find a benchmark on disk.

    Args:
        name: one of `names()`; "folder" is any folder with images/, labels/ and names.txt.
        root: its folder; None looks in $DENSEVL_DATA, ./data and the cache folder.
        variant: another label rule: "mmseg-default255" (ade847, pc459), "keep-ignore" (coco-object).

    Raises:
        DatasetError: unknown, not found, or empty; the message lists the expected layout.
    """
    chosen = spec(name)
    place, looked = find(chosen, root)
    if place is None:
        raise DatasetError(
            f"'{name}' was not found; looked in {', '.join(map(shown, looked))}; "
            f"expected there: {'; '.join(chosen.layout.expected(Path('ROOT')))}"
        )
    if variant and variant not in chosen.variants:
        has = ", ".join(chosen.variants) or "none"
        raise DatasetError(f"'{name}' has no label rule '{variant}'{suggest(variant, chosen.variants)}; it has {has}")
    items = (chosen.pairs or chosen.layout.items)(place)
    classes = chosen.classes(place)
    count = len(classes.all_names)
    tables = chosen.variants[variant](count) if variant else chosen.rules(count)
    table = tables[""] if "" in tables else tables[chosen.layout.label_end(place)]
    return Dataset(name, place, classes, tuple(items), table, variant, chosen.note)


def spread(limit: int, count: int) -> list[int]:
    """Indices of `limit` out of `count`, evenly.

    Raises:
        DatasetError: a limit under 1.
    """
    if limit < 1:
        raise DatasetError(f"a limit of {limit} images leaves nothing to evaluate; give 1 or more")
    return [index * count // limit for index in range(limit)]


def places(folder: str, root: str | os.PathLike[str] | None) -> list[Path]:
    """Where a dataset that usually lies in `folder` is looked for: below `root`, or in the usual data folders."""
    if root is not None:
        given = Path(root)
        return list(dict.fromkeys([given, given / Path(folder).name, given / folder]))
    data = os.environ.get(DATA_VARIABLE)
    bases = [Path(data)] if data else []
    return [base / folder for base in (*bases, Path("data"), cache_dir())]


def find(chosen: Spec, root: str | os.PathLike[str] | None) -> tuple[Path | None, list[Path]]:
    """The first place that has the image folder, and all places looked at."""
    looked = places(chosen.folder, root)
    return next((place for place in looked if (place / chosen.layout.images).is_dir()), None), looked


def _size(array: npt.NDArray[np.generic]) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
