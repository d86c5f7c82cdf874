"""Corrections that a person made on photos, written as COCO and read again."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from densevl.errors import LabelError
from densevl.proposals.base import Proposals
from densevl.regions.exports.contents import coco_categories
from densevl.rle import class_runs, coco_segmentation
from densevl.saved import Kind

Mask = npt.NDArray[np.bool_]
SAVED = Kind("labelling session", LabelError, "save it again")


@dataclass(frozen=True, eq=False)
class Correction:
    """A label that a person gave to some pixels of a photo.

    Attributes:
        name: of the class, or "nothing". vector: (D,) float32, the appearance of the pixels; see `looks`.
    """

    photo: str
    name: str
    size: tuple[int, int]
    vector: torch.Tensor
    _packed: bytes

    @classmethod
    def of(cls, photo: str, name: str, mask: Mask, vector: torch.Tensor) -> Correction:
        """Create a correction from a mask, bool (H, W)."""
        return cls(photo, name, mask.shape, vector, zlib.compress(np.packbits(mask).tobytes(), 1))

    @property
    def mask(self) -> Mask:
        """The corrected pixels, bool (H, W)."""
        bits = np.frombuffer(zlib.decompress(self._packed), np.uint8)
        return np.unpackbits(bits, count=self.size[0] * self.size[1]).reshape(self.size).astype(bool)


def coco_rows(
    labels: npt.NDArray[np.integer[Any]], image: int, own: list[str], names: list[str], *, corrected: bool
) -> list[dict[str, Any]]:
    """Return COCO annotations for the classes `own` of a map. Category ids are those of `names`."""
    height, width = labels.shape
    return [
        {
            "image_id": image,
            "category_id": names.index(own[index]) + 1,
            "segmentation": coco_segmentation(runs.counts, height, width, compressed=True),
            "area": runs.area,
            "bbox": [float(side) for side in runs.box],
            "iscrowd": 0,
            "corrected": corrected,
        }
        for index, runs in class_runs(labels).items()
    ]


def coco_session(
    said: Iterable[tuple[str, str, Mask]], found: Mapping[str, npt.NDArray[np.integer[Any]]], names: list[str]
) -> dict[str, Any]:
    """Return a session as COCO: the corrections in order, then what was found, one annotation per class and photo.

    Args:
        said: photo, class and mask (H, W) of each correction. found: for each photo the labels (H, W) of pixels without
            corrections, as indices of `names`, whose last one means none of the classes.
    """
    numbers = {name: number for number, name in enumerate(found)}
    rows: list[dict[str, Any]] = []
    for photo, name, mask in said:
        rows += coco_rows(mask.astype(np.int16) - 1, numbers[photo], [name], names, corrected=True)
    for photo, labels in found.items():
        rows += coco_rows(labels, numbers[photo], names, names, corrected=False)
    return {
        "images": [
            {"id": numbers[name], "file_name": name, "height": labels.shape[0], "width": labels.shape[1]}
            for name, labels in found.items()
        ],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows, start=1)],
        "categories": coco_categories(names),
    }


def corrected(content: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, str, Mask]]:
    """Yield the photo, name and mask of each correction in a saved session, for photos whose sizes are given."""
    names = {row["id"]: str(row["name"]) for row in content["categories"]}
    files = {row["id"]: str(row["file_name"]) for row in content["images"]}
    for row in content["annotations"]:
        photo = files[row["image_id"]]
        if row.get("corrected") and photo in sizes:
            mask = Proposals.from_rle([row["segmentation"]], sizes[photo]).mask(0)
            if mask.any():
                yield photo, names[row["category_id"]], mask
