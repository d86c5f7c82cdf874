"""COCO's "segmentation" entries as masks: run lengths, compressed or not, and polygons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import ProposalError
from densevl.images import MAX_PIXELS
from densevl.proposals import packing
from densevl.proposals.checks import NEAR, as_array


def entries_of(given: Any) -> Sequence[Any]:
    """The entries of a list, one entry, or the "segmentation" of whole annotations.

    Raises:
        ProposalError: it is not a list.
    """
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise ProposalError(f'rle is a {type(given).__name__}; give a list of {{"size": [H, W], "counts": ...}}')
    return [one["segmentation"] if isinstance(one, Mapping) and "segmentation" in one else one for one in given]


def coco_mask(entry: Any, size: tuple[int, int] | None, index: int) -> npt.NDArray[np.bool_]:
    """One entry as a mask, bool (H, W).

    Args:
        entry: {"size": [H, W], "counts": ...}, or polygons [[x0, y0, x1, y1, x2, y2, ...], ...] in pixels.
        size: (H, W) of the image; None takes that of the entry. index: its number, for messages.

    Raises:
        ProposalError: the size differs, runs do not add up to it, or polygons are malformed.
    """
    if isinstance(entry, list) and entry:
        return _filled(entry, size, index)
    try:
        own = (int(entry["size"][0]), int(entry["size"][1]))
        counts = packing.rle_counts(entry["counts"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ProposalError(f'RLE {index} is not {{"size": [H, W], "counts": ...}}: {error!r}') from error
    if size is not None and own != tuple(size):
        turned = "; its size looks like [W, H], COCO's is [H, W]" if own == tuple(size)[::-1] else ""
        raise ProposalError(f"RLE {index} is of {own}, the image {tuple(size)}{turned or ': both are (height, width)'}")
    if not 0 < own[0] * own[1] <= MAX_PIXELS:
        raise ProposalError(f"RLE {index} is of {own[0]}x{own[1]} pixels, the limit is {MAX_PIXELS:,}")
    if ((counts < 0) | (counts > own[0] * own[1])).any():  # before a sum of them wraps round
        raise ProposalError(f"RLE {index}: a run is below 0, or longer than the {own[0] * own[1]:,} pixels")
    if counts.sum() != own[0] * own[1]:
        raise ProposalError(
            f"RLE {index}: its runs add up to {counts.sum():,} pixels, its size {own} to {own[0] * own[1]:,}"
        )
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(own[1], own[0]).T


def _filled(polygons: list[Any], size: tuple[int, int] | None, index: int) -> npt.NDArray[np.bool_]:
    if size is None:
        raise ProposalError("polygons do not know the size of their image: pass size=(height, width)")
    height, width = size
    rings = []
    for ring in polygons if isinstance(polygons[0], Sequence) or hasattr(polygons[0], "__array__") else [polygons]:
        corners = as_array(ring, f"the corners of polygon {index}", "x0 y0 x1 y1 ..., in pixels").ravel()
        if len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
            raise ProposalError(f"polygon {index} has {len(corners)} finite or other numbers: x and y of three or more")
        rings.append(corners.astype(np.float64))
    every = np.concatenate(rings)
    if max(size) > 1 and every.min() >= -NEAR and every.max() <= 1 + NEAR:
        raise ProposalError(
            f"polygon {index} lies within 0-1 on an image of {width}x{height} pixels: it looks normalised; multiply x "
            f"by {width} and y by {height}"
        )
    xs, ys = every[0::2], every[1::2]
    if xs.max() <= 0 or ys.max() <= 0 or xs.min() >= width or ys.min() >= height:
        raise ProposalError(f"polygon {index} is outside the image of {width}x{height} pixels; leave it out")
    from pycocotools import mask

    drawn = mask.merge(mask.frPyObjects([ring.tolist() for ring in rings], height, width))
    return np.asarray(mask.decode(drawn)).astype(np.bool_)
