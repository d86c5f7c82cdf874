"""Place the names of classes on a picture, in the largest part of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from densevl.drawing.colours import Colour, UInt8Array
from densevl.drawing.text import Line, line, text_size

LOOKED_AT = 256  # pixels per side; larger label maps are subsampled to about this
SIZES = (1.0, 0.75)
"""Relative to the legend's text. The larger one is tried first."""
SMALLEST = 11
FILL: Colour = (255, 255, 255)
EDGE: Colour = (16, 18, 20)
"""White letters with a dark edge are visible on every colour."""


class Caption(NamedTuple):
    """A name on a picture. Attributes: y, x: its centre in pixels; edge: width of the outline of its letters."""

    text: Line
    y: int
    x: int
    edge: int


class Captions:
    """Finds places for names. If used for the frames of a video, a name keeps its place while it fits there."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[int, int]] = {}

    def __call__(self, labels: npt.NDArray[np.int16], names: Sequence[str]) -> list[Caption]:
        """Place each name in the largest connected part of its class, as far from the edge as possible.

        Args:
            labels: int16 (H, W), index into names, -1 for nothing.

        Returns:
            The names that fit, in the order of their classes.
        """
        height, width = labels.shape
        step = max(1, round((height * width) ** 0.5 / LOOKED_AT))
        small = labels[step // 2 :: step, step // 2 :: step]
        areas = np.bincount(small.ravel() + 1, minlength=len(names) + 1)[1:]
        found, places = [], dict[int, tuple[int, int]]()
        for number in np.flatnonzero(areas).tolist():
            texts = _texts(names[number], text_size(height, width))
            texts = [text for text in texts if text[1] * text[2] <= areas[number] * step**2]
            if not texts:
                continue
            part = _Part(small == number, step)
            for text, high, wide, edge in texts:
                place = part.place(high, wide, self._before.get(number))
                if place is not None:
                    found.append(Caption(text, *place, edge))
                    places[number] = place
                    break
        self._before = places
        return found


def draw_captions(picture: UInt8Array, captions: Sequence[Caption]) -> UInt8Array:
    """Draw names on a picture, uint8 RGB (H, W, 3)."""
    if not captions:
        return picture
    sheet = Image.fromarray(picture)
    draw = ImageDraw.Draw(sheet)
    for text, y, x, edge in captions:
        draw.text((x, y), text.text, FILL, text.font, anchor="mm", stroke_width=edge, stroke_fill=EDGE)
    return np.array(sheet)


def _texts(name: str, size: int) -> list[tuple[Line, int, int, int]]:
    """Return a name in each size, with its height and width in pixels, including padding, and its outline's width."""
    found = []
    for own in dict.fromkeys(max(SMALLEST, round(size * share)) for share in SIZES):
        text, edge = line(name, own), max(1, round(own / 9))
        if not text.text or not isinstance(text.font, ImageFont.FreeTypeFont):
            continue
        left, top, right, bottom = text.font.getbbox(text.text, anchor="mm", stroke_width=edge)
        air = round(own / 3)  # letters may be off-centre, so the box is around the centre of the text
        high, wide = 2 * max(-top, bottom) + air, 2 * max(-left, right) + air
        found.append((text, round(high), round(wide), edge))
    return found


class _Part:
    """The largest connected part of a mask that contains every `step`-th pixel."""

    def __init__(self, mask: npt.NDArray[np.bool_], step: int) -> None:
        from scipy import ndimage  # slow to import

        parts, count = ndimage.label(mask)
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        sizes[0] = 0
        largest = parts == sizes.argmax()
        self._box = ndimage.find_objects(largest.view(np.uint8))[0]
        self._step = step
        inside = np.pad(largest[self._box], 1)  # the border of a picture counts as an edge
        self._far = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
        self._sums = inside[:-1, :-1].cumsum(axis=0, dtype=np.int64).cumsum(axis=1)

    def place(self, high: int, wide: int, before: tuple[int, int] | None) -> tuple[int, int] | None:
        """Return the centre of a box of this size inside the part, farthest from the edge, or `before` if it fits."""
        rows, cols = (-(-side // self._step) for side in (high, wide))
        sums = self._sums
        if rows >= sums.shape[0] or cols >= sums.shape[1]:
            return None
        filled = sums[rows:, cols:] - sums[:-rows, cols:] - sums[rows:, :-cols] + sums[:-rows, :-cols]
        fits = filled == rows * cols  # by the first row and column of the box
        if not fits.any():
            return None
        down, across = (part.start for part in self._box)
        if before is not None:
            y, x = before[0] // self._step - down - rows // 2, before[1] // self._step - across - cols // 2
            if 0 <= y < fits.shape[0] and 0 <= x < fits.shape[1] and fits[y, x]:
                return before
        far = self._far[rows // 2 : rows // 2 + fits.shape[0], cols // 2 : cols // 2 + fits.shape[1]]
        far = np.where(fits, far, -1)
        equal = np.argwhere(far == far.max())  # in a bar, all points along its middle
        y, x = equal[((equal - equal.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        middle = (int(y) + down + rows // 2, int(x) + across + cols // 2)
        return middle[0] * self._step + self._step // 2, middle[1] * self._step + self._step // 2
