"""Layouts of segmentation benchmarks on disk: which image belongs to which label file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from densevl.errors import DatasetError
from densevl.evaluation.benchmarks.base import Item
from densevl.files import shown
from densevl.images import EXTENSIONS


@dataclass(frozen=True)
class Layout:
    """Where images and labels lie below the root of a dataset.

    Attributes:
        images, labels: folders.
        image_ends: endings of image names, tried in order; the part before is the stem.
        label_ends: endings of label names, tried in order for the whole dataset: the first that any label has.
        listing: a text file with one stem per line, or None to take all files.
        by_labels: without a listing, require an image for every label instead of a label for every image.
    """

    images: str
    labels: str
    image_ends: tuple[str, ...] = (".jpg",)
    label_ends: tuple[str, ...] = (".png",)
    listing: str | None = None
    by_labels: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """The layout as readable lines."""
        lines = [f"{self.images}/**/*{self.image_ends[0] if len(self.image_ends) == 1 else ''}"]
        lines += [" or ".join(f"{self.labels}/**/*{end}" for end in self.label_ends)]
        return (*lines, *([self.listing] if self.listing else []))

    def label_end(self, root: Path) -> str:
        """The ending of labels in this folder.

        Raises:
            DatasetError: no label file has any of the endings.
        """
        folder = root / self.labels
        for end in self.label_ends:
            if next(folder.rglob(f"*{end}"), None) is not None:
                return end
        found = next((path for path in folder.rglob("*.*") if path.suffix.lower() in {".jpg", ".jpeg"}), None)
        hint = (
            f"; {shown(found)} and others are JPEG, which changes numbers: save them as PNG from the source"
            if found
            else ""
        )
        raise DatasetError(f"no labels in {shown(folder)}: files must end in {' or '.join(self.label_ends)}{hint}")

    def items(self, root: Path) -> list[Item]:
        """All pairs, sorted by key; one file of a pair may be missing, which reading it reports.

        Raises:
            DatasetError: a folder or list is missing or empty, or two images have one label map.
        """
        for name in (self.images, self.labels, self.listing):
            if name is not None and not (root / name).exists():
                beside = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name != self.images)
                there = f" (there: {', '.join(beside[:8])})" if beside else ""
                raise DatasetError(f"{shown(root / name)} is missing{there}; expected: {'; '.join(self.files)}")
        images, labels, end = root / self.images, root / self.labels, self.label_end(root)
        if self.listing is not None:
            text = (root / self.listing).read_text(encoding="utf-8")
            stems = [line.split()[0] for line in text.splitlines() if line.strip()]
        elif self.by_labels:
            stems = _stems(labels, (end,))
        else:
            stems = _stems(images, self.image_ends)
        if not stems:
            where = root / (self.listing or (self.labels if self.by_labels else self.images))
            raise DatasetError(f"the split is empty: {shown(where)} names no image ({', '.join(self.image_ends)})")
        return [Item(stem, _first(images, stem, self.image_ends), labels / (stem + end)) for stem in stems]

    def lonely(self, root: Path, items: Sequence[Item]) -> list[Path]:
        """Label files that belong to none of the pairs."""
        known, folder, end = {item.label for item in items}, root / self.labels, self.label_end(root)
        return [path for stem in _stems(folder, (end,)) if (path := folder / (stem + end)) not in known]


def _stems(folder: Path, ends: tuple[str, ...]) -> list[str]:
    """Names without their ending, sorted, from all depths below the folder."""
    found = set()
    for path in folder.rglob("*"):
        end = next((end for end in ends if path.name.lower().endswith(end.lower())), None)
        if end is not None and path.is_file() and not path.name.startswith("."):
            found.add(path.relative_to(folder).as_posix()[: -len(end)])
    return sorted(found)


def _first(folder: Path, stem: str, ends: tuple[str, ...]) -> Path:
    paths = [folder / (stem + end) for end in ends]
    if len(paths) == 1:
        return paths[0]
    existing = [path for path in paths if path.exists()]
    if not existing:  # endings such as .Jpg
        existing = [path for path in folder.glob(f"{escape(stem)}.*") if path.suffix.lower() in ends]
    if len(existing) > 1 and not existing[0].samefile(existing[1]):
        raise DatasetError(
            f"{shown(existing[0])} and {existing[1].name} beside it share one label map: give each image a name of its "
            "own, or move one away"
        )
    return existing[0] if existing else paths[0]


ANY_IMAGE = tuple(sorted(EXTENSIONS))
