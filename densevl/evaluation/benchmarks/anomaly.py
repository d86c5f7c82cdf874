"""Anomaly benchmarks as they lie on disk: MVTec AD, VisA, MTD, KSDD2, and any folder in MVTec's layout.

A pixel is damaged where the mask rule says so; images without damage have no mask file. Splits are the published ones;
MTD has none, so ours is used and named in the note.
"""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densevl.errors import DatasetError, ImageError, suggest
from densevl.files import shown
from densevl.images import EXTENSIONS, read_image, read_labels

GOOD = "good"


@dataclass(frozen=True)
class AnomalyItem:
    """An image of an anomaly benchmark.

    Attributes:
        category: the kind of thing; defect: "good" or the kind of damage; image: file; mask: file or None where good.
        above: a mask number over this is damage.
    """

    category: str
    defect: str
    image: Path
    mask: Path | None = None
    above: int = 0

    @property
    def damaged(self) -> bool:
        """Whether anything is wrong with it."""
        return self.defect != GOOD

    def read_mask(self, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Where damage is: bool (H, W) of the image's `shape`.

        Raises:
            DatasetError: the mask is missing or of another size. ImageError: it cannot be read.
        """
        if self.mask is None:
            return np.zeros(shape, bool)
        if not self.mask.exists():
            raise DatasetError(f"the mask of {shown(self.image)} is missing: {shown(self.mask)}")
        mask = self._numbers(self.mask) > self.above
        if mask.shape != shape:
            raise DatasetError(
                f"{shown(self.mask)} is {mask.shape[1]}x{mask.shape[0]} and its image {shape[1]}x{shape[0]}: "
                "masks are never resized"
            )
        return mask

    def _numbers(self, path: Path) -> npt.NDArray[np.int32]:
        """What the mask file holds; a palette or 1-bit picture by its brightness, unless any number but 0 counts."""
        if self.above == 0 and path.suffix.lower() in {".png", ".tif", ".tiff"}:
            with contextlib.suppress(ImageError):
                return read_labels(path)
        return read_image(path).max(axis=2).astype(np.int32)


@dataclass(frozen=True)
class AnomalySet:
    """Attributes: name; root; train: flawless images to learn from; test: what is scored; note for reports."""

    name: str
    root: Path
    train: tuple[AnomalyItem, ...]
    test: tuple[AnomalyItem, ...]
    note: str = ""

    @property
    def categories(self) -> tuple[str, ...]:
        """Kinds of things, sorted."""
        return tuple(sorted({item.category for item in self.test}))

    def of(self, category: str) -> AnomalySet:
        """One category of it.

        Raises:
            DatasetError: there is none of that name.
        """
        if category not in self.categories:
            raise DatasetError(
                f"'{self.name}' has no category '{category}'{suggest(category, self.categories)}; "
                f"it has {', '.join(self.categories)}"
            )
        keep = [tuple(item for item in part if item.category == category) for part in (self.train, self.test)]
        return AnomalySet(self.name, self.root, keep[0], keep[1], self.note)


def open_anomaly(name: str, root: str | os.PathLike[str]) -> AnomalySet:
    """Read the listing of a benchmark; pictures are read later.

    Args:
        name: one of `names()`; "mvtec" is any folder in that layout, the rendered benchmark's anomaly/ too.
        root: its folder.

    Raises:
        DatasetError: unknown name, or nothing of that layout there; the message has the layout.
    """
    if name not in _READERS:
        raise DatasetError(f"no anomaly dataset '{name}'{suggest(name, _READERS)}; there are {', '.join(_READERS)}")
    read, layout, note = _READERS[name]
    place = Path(root)
    if not place.is_dir():
        raise DatasetError(f"'{name}' was not found; looked in {shown(place)}; expected there: {layout}")
    train, test = read(place)
    if not test:
        raise DatasetError(f"{shown(place)} holds no test images of '{name}'; expected there: {layout}")
    return AnomalySet(name, place, tuple(train), tuple(test), note)


def names() -> tuple[str, ...]:
    """The anomaly benchmarks there are readers for."""
    return tuple(_READERS)


Split = tuple[list[AnomalyItem], list[AnomalyItem]]


def _mvtec(root: Path) -> Split:
    train: list[AnomalyItem] = []
    test: list[AnomalyItem] = []
    for category in _folders(root):
        for image in _images(category / "train" / GOOD):
            train.append(AnomalyItem(category.name, GOOD, image))
        for defect in _folders(category / "test"):
            for image in _images(defect):
                mask = category / "ground_truth" / defect.name / f"{image.stem}_mask.png"
                test.append(
                    AnomalyItem(category.name, defect.name, image, None if defect.name == GOOD else mask, above=127)
                )
    return train, test


def _visa(root: Path) -> Split:
    """Masks hold small class numbers that look black."""
    listing = root / "split_csv" / "1cls.csv"
    if not listing.exists():
        raise DatasetError(f"{shown(listing)} is missing: VisA's own list of the split")
    train: list[AnomalyItem] = []
    test: list[AnomalyItem] = []
    with listing.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            normal = row["label"] == "normal"
            mask = None if normal or not row["mask"] else root / row["mask"]
            item = AnomalyItem(row["object"], GOOD if normal else "anomaly", root / row["image"], mask)
            (train if row["split"] == "train" else test).append(item)
    return train, test


def _mtd(root: Path) -> Split:
    """Every fifth flawless tile, by name, is tested; masks have grey edges."""
    train: list[AnomalyItem] = []
    test: list[AnomalyItem] = []
    for folder in _folders(root):
        if not folder.name.startswith("MT_"):
            continue
        defect = folder.name.removeprefix("MT_").lower()
        images = [path for path in _images(folder / "Imgs") if path.suffix.lower() in {".jpg", ".jpeg"}]
        for number, image in enumerate(images):
            if defect != "free":
                test.append(AnomalyItem("tile", defect, image, image.with_suffix(".png"), above=127))
            else:
                (test if number % 5 == 4 else train).append(AnomalyItem("tile", GOOD, image))
    return train, test


def _ksdd2(root: Path) -> Split:
    """Whether an image is damaged is what its mask says, so masks are read while listing."""
    parts: dict[str, list[AnomalyItem]] = {}
    for split in ("train", "test"):
        parts[split] = []
        for image in _images(root / split):
            if image.stem.endswith("_GT"):
                continue
            mask = image.with_name(f"{image.stem}_GT.png")
            if not mask.exists():
                raise DatasetError(f"the mask of {shown(image)} is missing: {shown(mask)}")
            damaged = bool((read_image(mask) > 0).any())
            item = AnomalyItem("surface", "defect" if damaged else GOOD, image, mask if damaged else None)
            parts[split].append(item)
    return [item for item in parts["train"] if not item.damaged], parts["test"]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))


_MVTEC_LAYOUT = "CATEGORY/train/good/*.png, CATEGORY/test/DEFECT/*.png, CATEGORY/ground_truth/DEFECT/*_mask.png"
_READERS: dict[str, tuple[Callable[[Path], Split], str, str]] = {
    "mvtec": (_mvtec, _MVTEC_LAYOUT, ""),
    "visa": (_visa, "split_csv/1cls.csv and the files it names", "the official split for one class"),
    "mtd": (
        _mtd,
        "MT_Free/Imgs/*.jpg and MT_DEFECT/Imgs/*.jpg with masks *.png",
        "densevl's split: every fifth flawless tile by name is tested; the dataset has none of its own",
    ),
    "ksdd2": (
        _ksdd2,
        "train/*.png and test/*.png with masks *_GT.png",
        "the native split, flawed training images left out",
    ),
}


def layout(name: str) -> str:
    """The files that a benchmark is expected to have, for messages."""
    return _READERS[name][1]
