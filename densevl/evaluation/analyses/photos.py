"""Photos without labels as a dataset, for analyses that need only a model's answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import DatasetError, ImageError
from densevl.evaluation.benchmarks.base import SEMANTIC, Benchmark, Dataset, Item
from densevl.evaluation.benchmarks.class_lists import ClassList
from densevl.files import shown
from densevl.images import list_images
from densevl.vocabulary import LabelSet

GIVEN = "given"
"""The variant of the class list that has the labels' synonyms."""


@dataclass(frozen=True, eq=False)
class Photos(Dataset):
    """Photos without truth: no pixel is scored."""

    def truth(self, item: Any, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
        return np.full(image.shape[:2], -1, np.int16)


def open_photos(place: str | Path, labels: LabelSet) -> Photos:
    """Open the photos of a folder, or anything `find_images` takes, with the labels to ask for.

    Raises:
        ImageError: there are none.
    """
    paths = list_images(place)
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    keys = [path.absolute().relative_to(root).with_suffix("").as_posix() for path in paths]
    items = tuple(Item(key, path, None) for key, path in zip(keys, paths, strict=True))
    strings = {GIVEN: {name: list(words) for name, words in zip(labels.names, labels.synonyms, strict=True)}}
    classes = ClassList("photos", labels.names, True, strings, source="the labels given")
    benchmark = Benchmark(shown(place), SEMANTIC, "", (), (), _not_found)
    return Photos(benchmark, root, classes, items)


def readable(photos: Photos, tell: Callable[[str], None]) -> Photos:
    """The photos that can be read; `tell` gets a message for each other photo.

    Raises:
        ImageError: there are none.
    """
    kept = []
    for item in photos.items:
        try:
            photos.read(item)
        except (ImageError, DatasetError) as error:
            tell(f"{error}; it is left out")
        else:
            kept.append(item)
    if not kept:
        raise ImageError(f"no photo of {photos.name} can be read")
    return replace(photos, items=tuple(kept))


def _not_found(*_: Any) -> Dataset:
    raise NotImplementedError("photos are opened by `open_photos`")
