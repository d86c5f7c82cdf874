"""The user's labelled pictures as examples for a `FewShot`, in the form of its level."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from densevl.errors import DatasetError
from densevl.files import shown
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.fewshot.features import by_folder
from densevl.pipelines.segmentation.segmenter import Labels
from densevl.proposals.base import Proposals
from densevl.results import UNLABELLED
from densevl.tuning.candidates import REGIONS, SEGMENT
from densevl.tuning.pictures import HOLDS, Pictures, kinds, open_pictures

ALL = 2**31  # no limit: examples are taken from all pictures
USES = {"region": REGIONS, "pixel": SEGMENT}


def open_examples(folder: str | os.PathLike[str], level: str) -> tuple[Any, Labels]:
    """Open the pictures of a folder for a level, and read their classes.

    Args:
        folder: for images, folders of images named after their classes; for regions, a folder with images/ and
            instances.json in COCO's form; for pixels, one with images/, labels/ and a list of classes.
        level: as of `FewShot`.

    Returns:
        {name: files} for images; for the others `Pictures`, from which `taught` makes examples.

    Raises:
        DatasetError, ImageError: it holds something else.
    """
    root = Path(folder)
    uses = kinds(root) if root.is_dir() else []
    if level not in USES:
        other = next((name for name, use in USES.items() if use in uses), None)
        if other is not None:
            raise DatasetError(f"{shown(root)} holds {HOLDS[USES[other]]}: that is for level '{other}', not '{level}'")
        found = by_folder(folder)
        return found, list(found)
    if root.is_dir() and USES[level] not in uses:
        raise DatasetError(f"{shown(root)} shows no {level}s; give a folder with {HOLDS[USES[level]]}")
    pictures = open_pictures(folder, limit=ALL, use=USES[level])
    return pictures, pictures.labels


def taught(few: FewShot, pictures: Pictures) -> list[Any]:
    """Examples of regions or pixels, as `fit` takes them.

    Pixels with the background label are examples of nothing, and so is background by words.

    Raises:
        DatasetError: all objects are crowds.
        ImageError: a picture or its truth cannot be read.
    """
    if few.level == "pixel":
        names = [*pictures.labels.names, *[UNLABELLED] * pictures.background]
        return [few.show(image, _numbered(truth, pictures), names) for image, truth in _read(pictures)]
    found = [
        (
            pictures.paths[index],
            Proposals.from_rle([truth.masks[number] for number in own], image.shape[:2]),
            [pictures.labels.names[truth.labels[number]] for number in own],
        )
        for index, (image, truth) in enumerate(_read(pictures))
        if len(own := np.flatnonzero(~truth.crowd).tolist())
    ]
    if not found:
        raise DatasetError("all objects are crowds: no region shows one thing")
    return found


def _read(pictures: Pictures) -> Iterator[tuple[np.ndarray, Any]]:
    return (pictures.read(index) for index in range(len(pictures)))


def _numbered(truth_HW: np.ndarray, pictures: Pictures) -> np.ndarray:
    """Class numbers in which the background, which is first in datasets, comes last."""
    if not pictures.background:
        return truth_HW
    return np.where(truth_HW == 0, len(pictures.labels), np.where(truth_HW > 0, truth_HW - 1, -1))
