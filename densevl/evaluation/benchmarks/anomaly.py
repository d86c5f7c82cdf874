"""Anomaly benchmarks as they lie on disk: MVTec AD, VisA, MTD, KSDD2, and any folder in MVTec's layout.

The mask rule says which pixels are damaged; images without damage have no mask file. Splits are the published ones; MTD
has none, so densevl's own is used and named in the note.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import DatasetError, EvaluationError, ImageError
from densevl.evaluation.benchmarks.base import ANOMALY, Benchmark, Dataset, Item, evenly, label_file, same_size
from densevl.evaluation.benchmarks.class_lists import ClassList
from densevl.evaluation.benchmarks.own import EXIF
from densevl.files import shown
from densevl.images import EXTENSIONS, read_image, read_labels

GOOD = "good"


@dataclass(frozen=True)
class AnomalyItem(Item):
    """An image of an anomaly benchmark; its label is the mask of the damage, None where it is flawless.

    Attributes:
        category: the kind of object. defect: "good" or the kind of damage. above: mask values over this are damage.
    """

    category: str = field(kw_only=True)
    defect: str = field(kw_only=True)
    above: int = field(kw_only=True, default=0)

    @property
    def damaged(self) -> bool:
        """Whether it has any damage."""
        return self.defect != GOOD


@dataclass(frozen=True, eq=False)
class AnomalyDataset(Dataset):
    """Test images with masks of the damage, category by category; the classes are the categories.

    Attributes:
        train: flawless images to learn from.
    """

    train: tuple[AnomalyItem, ...] = field(kw_only=True, repr=False)

    @property
    def listed(self) -> tuple[AnomalyItem, ...]:
        """Training and test images."""
        return (*self.train, *self.items)

    def references(self, category: str, shots: int) -> list[AnomalyItem]:
        """The first `shots` flawless training images of a category, by name.

        Raises:
            EvaluationError: there are fewer.
        """
        own = sorted((item for item in self.train if item.category == category), key=lambda item: item.image.name)
        if shots > len(own):
            raise EvaluationError(f"{shots} shots asked for and '{category}' has {len(own)} flawless images")
        return own[:shots]

    def _some(self, limit: int) -> tuple[AnomalyItem, ...]:
        """Flawless and damaged images in proportion, since an even step over both may pick only one kind."""
        kinds = [[item for item in self.items if item.damaged == damaged] for damaged in (False, True)]
        flawless = min(max(round(limit * len(kinds[0]) / len(self)), 1), limit - 1) if all(kinds) and limit > 1 else 0
        flawless = flawless if kinds[1] else limit
        chosen = {*evenly(kinds[0], flawless), *evenly(kinds[1], limit - flawless)}
        return tuple(item for item in self.items if item in chosen)

    def truth(self, item: AnomalyItem, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """The damaged pixels: bool (H, W).

        Raises:
            DatasetError: the mask is missing or has another size.
            ImageError: the mask cannot be read.
        """
        if item.label is None:
            return np.zeros(image.shape[:2], bool)
        numbers = mask_numbers(item)
        same_size(item.label, numbers, image)
        return numbers > (item.above if numbers.max() > 1 else 0)  # masks of 0 and 1 need no threshold


def mask_numbers(item: AnomalyItem) -> npt.NDArray[np.int32]:
    """The values in a mask file; a palette or 1-bit picture gives its brightness, unless any number but 0 counts.

    Raises:
        DatasetError: the mask is missing.
        ImageError: the mask cannot be read.
    """
    path = label_file(item)
    if item.above == 0 and path.suffix.lower() in {".png", ".tif", ".tiff"}:
        with contextlib.suppress(ImageError):
            return read_labels(path)
    return read_image(path).max(axis=2).astype(np.int32)


Split = tuple[list[AnomalyItem], list[AnomalyItem]]


def _item(root: Path, image: Path, category: str, defect: str, mask: Path | None = None, above: int = 0) -> AnomalyItem:
    key = image.relative_to(root).with_suffix("").as_posix()
    return AnomalyItem(key, image, mask, category=category, defect=defect, above=above)


def _mvtec(root: Path) -> Split:
    train: list[AnomalyItem] = []
    test: list[AnomalyItem] = []
    for category in _folders(root):
        for image in _images(category / "train" / GOOD):
            train.append(_item(root, image, category.name, GOOD))
        for defect in _folders(category / "test"):
            for image in _images(defect):
                masks = category / "ground_truth" / defect.name
                mask = masks / f"{image.stem}_mask.png"
                plain = masks / f"{image.stem}.png"
                mask = plain if plain.exists() and not mask.exists() else mask
                mask_or_none = None if defect.name == GOOD else mask
                test.append(_item(root, image, category.name, defect.name, mask_or_none, above=127))
    return train, test


def _visa(root: Path) -> Split:
    """Masks store small class numbers, which look black."""
    train: list[AnomalyItem] = []
    test: list[AnomalyItem] = []
    with (root / "split_csv/1cls.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            normal = row["label"] == "normal"
            mask = None if normal or not row["mask"] else root / row["mask"]
            item = _item(root, root / row["image"], row["object"], GOOD if normal else "anomaly", mask)
            (train if row["split"] == "train" else test).append(item)
    return train, test


def _mtd(root: Path) -> Split:
    """Every fifth flawless tile, by name, is a test image; masks have grey edges."""
    train: list[AnomalyItem] = []
    test: list[AnomalyItem] = []
    for folder in _folders(root):
        if not folder.name.startswith("MT_"):
            continue
        defect = folder.name.removeprefix("MT_").lower()
        images = [path for path in _images(folder / "Imgs") if path.suffix.lower() in {".jpg", ".jpeg"}]
        for number, image in enumerate(images):
            if defect != "free":
                test.append(_item(root, image, "tile", defect, image.with_suffix(".png"), above=127))
            else:
                (test if number % 5 == 4 else train).append(_item(root, image, "tile", GOOD))
    return train, test


def _ksdd2(root: Path) -> Split:
    """Only the mask says whether an image is damaged, so masks are read while listing."""
    parts: dict[str, list[AnomalyItem]] = {}
    for split in ("train", "test"):
        parts[split] = []
        for image in _images(root / split):
            if image.stem.endswith("_GT"):
                continue
            mask = image.with_name(f"{image.stem}_GT.png")
            if not mask.exists():
                raise DatasetError(f"the labels of {shown(image)} are missing: {shown(mask)}")
            damaged = bool((read_image(mask) > 0).any())
            item = _item(root, image, "surface", "defect" if damaged else GOOD, mask if damaged else None)
            parts[split].append(item)
    return [item for item in parts["train"] if not item.damaged], parts["test"]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))


def _benchmark(
    name: str, split: Callable[[Path], Split], files: tuple[str, ...], mark: str, note: str = ""
) -> Benchmark:
    def opens(benchmark: Benchmark, root: Path, variant: str, rules: Mapping[str, Any]) -> Dataset:
        train, test = split(root)
        if not test:
            raise DatasetError(f"{shown(root)} holds no test images of '{name}'; expected there: {'; '.join(files)}")
        test.sort(key=lambda item: item.category)  # stable: the listing's order within a category
        categories = tuple(dict.fromkeys(item.category for item in test))
        return AnomalyDataset(
            benchmark,
            root,
            ClassList(name, categories),
            tuple(test),
            train=tuple(train),
            exif=rules.get("exif", EXIF[0]),
        )

    return Benchmark(name, ANOMALY, name, files, (mark,), opens, note=note, rules=("exif",))


BENCHMARKS = (
    _benchmark(
        "mvtec",
        _mvtec,
        ("CATEGORY/train/good/*.png", "CATEGORY/test/DEFECT/*.png", "CATEGORY/ground_truth/DEFECT/*_mask.png"),
        "*/test",
    ),
    _benchmark(
        "visa",
        _visa,
        ("split_csv/1cls.csv and the files it names",),
        "split_csv/1cls.csv",
        "the official split for one class",
    ),
    _benchmark(
        "mtd",
        _mtd,
        ("MT_Free/Imgs/*.jpg and MT_DEFECT/Imgs/*.jpg with masks *.png",),
        "MT_*",
        "densevl's split: every fifth flawless tile by name is tested; the dataset has none of its own",
    ),
    _benchmark(
        "ksdd2",
        _ksdd2,
        ("train/*.png and test/*.png with masks *_GT.png",),
        "test",
        "the native split, flawed training images left out",
    ),
)
