"""Connected parts of a mask: numbering them, and removing those of a few pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from densevl.lazy import ndimage

BoolArray = npt.NDArray[np.bool_]

CORNERS_TOUCH = np.ones((3, 3), bool)
"""Structure for `scipy.ndimage.label`: pixels that touch at a corner are connected."""


def components(mask: BoolArray) -> npt.NDArray[np.int32]:
    """Number the connected parts of a mask, bool (H, W), in the order of their first pixel.

    Returns:
        int32 (H, W): 0 outside the mask, then 1, 2, ...; pixels that touch at a corner are connected.
    """
    return ndimage.label(mask, CORNERS_TOUCH)[0]


def tidy(mask: BoolArray, min_area: int) -> tuple[BoolArray, bool]:
    """Fill holes and drop islands of less than `min_area` pixels; the largest island stays, however small.

    Args:
        mask: bool (H, W); pixels that touch at a corner are connected, in islands and in holes.
        min_area: pixels.

    Returns:
        bool (H, W), the given array if nothing changed; and whether anything did.
    """
    holes = _small(~mask, min_area, keep_largest=False)
    filled = mask if holes is None else mask | holes
    islands = _small(filled, min_area, keep_largest=True)
    return filled if islands is None else filled & ~islands, holes is not None or islands is not None


def _small(mask: BoolArray, min_area: int, *, keep_largest: bool) -> BoolArray | None:
    """The components below `min_area`, bool (H, W); None if there are none."""
    numbers = components(mask)
    areas = np.bincount(numbers.ravel())
    small = areas < min_area
    small[0] = False
    if keep_largest and len(areas) > 1:
        small[1 + areas[1:].argmax()] = False
    return small[numbers] if small.any() else None
