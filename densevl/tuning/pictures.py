"""The user's pictures: with label maps, with objects in COCO's form, in a folder per class, or without any truth."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from densevl import digest
from densevl.errors import DatasetError
from densevl.evaluation.benchmarks.base import INSTANCE, SEMANTIC, Dataset, evenly
from densevl.evaluation.benchmarks.table import open_dataset
from densevl.files import shown
from densevl.images import find_images, read_image
from densevl.pipelines.fewshot.features import by_folder
from densevl.tuning.candidates import CLASSIFY, REGIONS, SEGMENT
from densevl.vocabulary import LabelSet

MOST = 40
"""Default limit on the number of pictures."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures to tune on.

    Attributes:
        use: the command they are for. labels: the classes. labelled: whether the truth is known.
        background: whether pixels may be none of the labels. paths: of the pictures.
        truths: of each picture, for `truth`: an index, or a class; empty if unknown.
        dataset: label maps or objects. warnings: oddities.
    """

    use: str
    labels: LabelSet
    paths: tuple[Path, ...]
    labelled: bool = True
    background: bool = False
    truths: tuple[Any, ...] = ()
    dataset: Dataset | None = None
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[np.ndarray, Any]:
        """A picture, uint8 RGB (H, W, 3), and its truth: int16 (H, W), `Objects`, the number of its class, or None.

        Raises:
            ImageError, DatasetError: it cannot be read.
        """
        if self.dataset is not None:
            sample = self.dataset.read(self.truths[index])
            return sample.image, sample.truth
        return read_image(self.paths[index]), self.truths[index] if self.labelled else None

    def facts(self) -> dict[str, Any]:
        """Everything that decides counts, ready for JSON."""
        files: list[Any] = [[path.name, digest.of_file(path)] for path in self.paths]
        if self.dataset is not None:
            files += [str(number) for number in self.dataset.digests().tolist()]
        words = [list(map(str, own)) for own in self.labels.synonyms]
        truths = list(self.truths) if self.dataset is None else None
        content = {"use": self.use, "names": list(self.labels.names), "words": words, "truths": truths}
        return {**content, "files": digest.of_text(str(files)), "background": self.background}


def open_pictures(
    folder: str | os.PathLike[str], labels: Any = None, *, limit: int = MOST, use: str | None = None
) -> Pictures:
    """Open the pictures of a folder.

    Args:
        folder: one with images/, labels/ and a list of classes; one with instances.json; one of folders of images named
            after their classes; or any images, for which `labels` must be given.
        labels: of pictures without truth, as `LabelSet.parse` takes them. limit: largest number, spread evenly.
        use: the command to tune, if the folder suits several.

    Raises:
        DatasetError: there is nothing to tune on.
        ImageError: there are no images.
        LabelError: labels are unusable.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DatasetError(
            f"{shown(root)} is not a folder; give one with pictures, and with their labels if there are some"
        )
    found = kinds(root)
    if labels is not None:
        asked = LabelSet.parse(labels)
        if found:
            raise DatasetError(
                f"{shown(root)} tells its classes (for {found[0]}), and labels are for pictures without a truth: leave "
                "them out, or give the folder of the pictures alone"
            )
        return _bare(root, asked, limit)
    if use is not None and use not in found:
        raise DatasetError(f"{shown(root)} holds nothing that tells about {use}; {_HOLDS}")
    if not found:
        raise DatasetError(f"{shown(root)} holds no truth to tune on: {_HOLDS}; or give --labels, to guess without one")
    return {SEGMENT: _maps, REGIONS: _objects, CLASSIFY: _folders}[use or found[0]](root, limit)


HOLDS = {
    SEGMENT: "images/ with labels/ and a list of classes",
    REGIONS: "images/ with instances.json",
    CLASSIFY: "a folder of images for each class",
}
"""The contents of a folder that each use needs."""
_HOLDS = ", or ".join(f"{form} (for {use})" for use, form in HOLDS.items())


def kinds(root: Path) -> list[str]:
    """The uses that a folder suits, by the names of its contents."""
    inner = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if (root / "images").is_dir():
        found = [SEGMENT] if (root / "labels").is_dir() else []
        return found + [REGIONS] * (root / "instances.json").is_file()
    return [CLASSIFY] if len(inner) > 1 else []


def _maps(root: Path, limit: int) -> Pictures:
    dataset = open_dataset("folder", root, task=SEMANTIC)
    dataset = dataset.subset(min(limit, len(dataset)))
    strings = next((name for name in dataset.classes.variants if name.startswith("own@")), dataset.classes.variants[0])
    labels = dataset.classes.labels(strings)
    return _of(SEGMENT, dataset, labels, background=dataset.classes.background)


def _objects(root: Path, limit: int) -> Pictures:
    dataset = open_dataset("folder", root, task=INSTANCE)
    with_objects = tuple(item for item in dataset.items if item.annotations)
    if not with_objects:
        raise DatasetError(f"{shown(root / 'instances.json')} has no objects: there is nothing to tune on")
    dataset = replace(dataset, items=with_objects)
    return _of(REGIONS, dataset.subset(min(limit, len(dataset))), dataset.classes.labels())


def _of(use: str, dataset: Dataset, labels: LabelSet, *, background: bool = False) -> Pictures:
    paths = tuple(item.image for item in dataset.items)
    return Pictures(use, labels, paths, True, background, dataset.items, dataset, (*dataset.warnings, *labels.warnings))


def _folders(root: Path, limit: int) -> Pictures:
    found = by_folder(root)
    rounds = max(map(len, found.values()))
    rows = [(own[at], number) for at in range(rounds) for number, own in enumerate(found.values()) if at < len(own)]
    taken = rows[: max(limit, len(found))]  # in turn, so that every class has some
    return Pictures(
        CLASSIFY,
        LabelSet.parse(list(found)),
        tuple(Path(path) for path, _ in taken),
        truths=tuple(number for _, number in taken),
    )


def _bare(root: Path, labels: LabelSet, limit: int) -> Pictures:
    found = find_images(root).paths
    some = evenly(found, min(limit, len(found)))
    return Pictures(SEGMENT, labels, tuple(map(Path, some)), False, True, warnings=labels.warnings)
