"""An image in ever smaller overlapping crops, so that SAM sees small things enlarged (Kirillov et al., appendix B)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from densevl.proposals import packing
from densevl.proposals.base import Proposals

NEAR = 20
"""Distance in pixels from an edge of a crop within which a mask may have been cut by it."""


class Crop(NamedTuple):
    """A part of an image in pixels, right and bottom exclusive, and its layer: 0 is the whole image."""

    left: int
    top: int
    right: int
    bottom: int
    layer: int


def crops(size: tuple[int, int], layers: int, overlap: float) -> list[Crop]:
    """The whole image, then the 2^i x 2^i crops of each layer i, column by column from top to bottom.

    Args:
        size: (H, W). layers: besides the whole. overlap: of neighbours in the first layer, as a fraction of the shorter
            side; halved with each further layer.
    """
    height, width = size
    found = [Crop(0, 0, width, height, 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(size) * 2 / count)
        down, across = (-(-(shared * (count - 1) + length) // count) for length in size)
        found += [
            Crop(left, top, min(left + across, width), min(top + down, height), layer)
            for left in range(0, count * (across - shared), across - shared)
            for top in range(0, count * (down - shared), down - shared)
            if left < width and top < height
        ]
    return found


def cut_by(boxes: npt.NDArray[np.float32], crop: Crop, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which boxes (M, 4) of a crop, in its pixels, are near an edge of it that is not an edge of the image."""
    inclusive = boxes + np.array([crop.left, crop.top, crop.left - 1, crop.top - 1])
    near_crop = np.abs(inclusive - np.array(crop[:4])) <= NEAR
    near_image = np.abs(inclusive - np.array([0, 0, size[1], size[0]])) <= NEAR
    return (near_crop & ~near_image).any(axis=1)


def laid_back(found: Proposals, crop: Crop, size: tuple[int, int]) -> Proposals:
    """Convert masks of a crop to masks of the image."""
    packed = np.zeros((len(found), packing.row_bytes(size)), np.uint8)
    whole = np.zeros(size, np.bool_)
    part = whole[crop.top : crop.bottom, crop.left : crop.right]
    for index in range(len(found)):
        part[:] = found.mask(index)
        packed[index] = packing.pack(whole)
    return Proposals.from_packed(packed, size, found.quality)
