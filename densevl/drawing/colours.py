"""The colours of classes, and of paper and ink."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

PAPER: Colour = (255, 255, 255)
INK: Colour = (33, 37, 41)
FAINT: Colour = (125, 132, 140)

# Distinct from each other and from common backgrounds; neighbours in the list differ most.
_FIRST_COLOURS = (
    (230, 57, 70),  # red
    (33, 131, 240),  # blue
    (255, 196, 0),  # amber
    (46, 184, 92),  # green
    (160, 80, 230),  # violet
    (255, 122, 26),  # orange
    (0, 200, 208),  # cyan
    (255, 92, 172),  # pink
    (168, 222, 36),  # lime
    (142, 92, 58),  # brown
    (40, 64, 158),  # navy
    (250, 218, 172),  # sand
)
_GOLDEN = (math.sqrt(5) - 1) / 2


def palette(count: int) -> UInt8Array:
    """Return the colours of classes 0 to count - 1. The colour of a class does not depend on the count.

    The first twelve are hand-picked to be distinct on photos. Later ones step through the hues by the golden ratio, and
    alternate saturation and brightness.

    Args:
        count: number of classes, 0 or more.

    Returns:
        uint8 RGB (count, 3).
    """
    later = [_walked_colour(step) for step in range(max(0, count - len(_FIRST_COLOURS)))]
    return np.array([*_FIRST_COLOURS, *later][: max(0, count)], np.uint8).reshape(-1, 3)


def _walked_colour(step: int) -> Colour:
    hue = (0.03 + step * _GOLDEN) % 1.0
    saturation = (0.78, 0.5, 0.95, 0.62)[step % 4]
    value = (0.95, 0.72, 0.84, 0.58, 1.0)[step % 5]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
