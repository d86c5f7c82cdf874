"""Objects of a label map, and pictures in which they are changed: filled in, recoloured, moved, written on.

An object is a connected part of the pixels of a class, including diagonal contact. Label maps hold no more: touching
objects of a class count as one, and a partly hidden object may count as several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from densevl.drawing.text import line
from densevl.evaluation.analyses.base import Labels, Mask, Picture
from densevl.evaluation.benchmarks.base import Dataset, Sample
from densevl.lazy import ndimage
from densevl.proposals.components import components

LEAST = 0.0005
"""Smaller parts are not objects, as a share of the photo."""
FEWEST = 16
"""The same limit in pixels."""
SMALLEST, LARGEST = 8, 96
"""Range of letter heights in pixels; smaller letters cannot be read."""
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 90, 214),
    "yellow": (245, 205, 40),
    "purple": (130, 60, 180),
    "orange": (245, 130, 30),
}


@dataclass(frozen=True, eq=False)
class Thing:
    """An object. Attributes: label, its class index; mask, bool (H, W); share of the photo, 0..1."""

    label: int
    mask: Mask
    share: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 in pixels."""
        return box_of(self.mask)


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask that has a pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def things(sample: Sample, dataset: Dataset) -> list[Thing]:
    """The objects of an image, largest first; background is not an object."""
    first, found = int(dataset.classes.background), []
    least = max(FEWEST, LEAST * sample.truth.size)
    for label in np.unique(sample.truth[sample.truth >= first]).tolist():
        numbers = components(sample.truth == label)
        areas = np.bincount(numbers.ravel())
        found += [
            Thing(label, numbers == number, float(areas[number] / numbers.size))
            for number in range(1, len(areas))
            if areas[number] >= least
        ]
    return sorted(found, key=lambda thing: -thing.share)


def filled(rgb: Picture, mask: Mask) -> Picture:
    """The picture with the pixels of a mask filled from the nearest pixels outside it."""
    if not mask.any() or mask.all():
        return rgb
    rows, columns = ndimage.distance_transform_edt(mask, return_distances=False, return_indices=True)
    return rgb[rows, columns]


def recoloured(rgb: Picture, mask: Mask, colour: str) -> Picture:
    """The picture with an object in a colour of `COLOURS`; shading is kept, between dark and the full colour."""
    grey = rgb.astype(np.float64) @ (0.299, 0.587, 0.114)
    inside = grey[mask]
    low, high = np.percentile(inside, (5, 95)) if inside.size else (0.0, 1.0)
    shade = 0.45 + 0.55 * np.clip((grey - low) / max(1.0, high - low), 0, 1)
    paint = np.rint(shade[..., None] * np.array(COLOURS[colour], float)).astype(np.uint8)
    return np.where(mask[..., None], paint, rgb)


def moved(sample: Sample, place: Sample) -> Picture:
    """The objects of one image, cut out by their masks, on the background of another, whose objects are filled in."""
    height, width = sample.truth.shape
    other = filled(place.image, place.truth != 0)
    ground = np.asarray(Image.fromarray(other).resize((width, height), Image.Resampling.BICUBIC))
    return np.where((sample.truth > 0)[..., None], sample.image, ground)


@lru_cache(maxsize=4096)
def drawable(word: str) -> bool:
    """Whether a font of this machine has all letters of a word."""
    found = line(word, SMALLEST)
    return found.whole and bool(found.text)


@lru_cache(maxsize=4096)
def plate(word: str, width: int, height: int) -> npt.NDArray[np.uint8] | None:
    """A word in black on white, as large as fits (height, width): uint8 (h, w, 3); None if it cannot be read."""
    for size in range(min(LARGEST, height), SMALLEST - 1, -1):
        text, font, _ = line(word, size)
        left, top, right, bottom = (round(side) for side in font.getbbox(text))
        wide, high = right - left + 4, bottom - top + 4
        if wide <= width and high <= height:
            picture = Image.new("RGB", (wide, high), "white")
            ImageDraw.Draw(picture).text((2 - left, 2 - top), text, font=font, fill="black")
            return np.asarray(picture)
    return None


def written_on(rgb: Picture, word: str, box: tuple[int, int, int, int], *, blank: bool = False) -> Picture | None:
    """The picture with a word on a plate in the middle of a box; None if it would be too small to read.

    Args:
        blank: draw the plate without the word.
    """
    x0, y0, x1, y1 = box
    drawn = plate(word, x1 - x0, y1 - y0)
    if drawn is None:
        return None
    height, width = drawn.shape[:2]
    top, left = y0 + (y1 - y0 - height) // 2, x0 + (x1 - x0 - width) // 2
    changed = rgb.copy()
    changed[top : top + height, left : left + width] = 255 if blank else drawn
    return changed


def same_size(labels: Labels, size: tuple[int, int]) -> Labels:
    """Resize a label map to (H, W) by nearest pixel."""
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * old / new, old - 1).astype(np.int64)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]
