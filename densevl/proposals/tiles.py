"""Proposals for photos larger than a proposer's input: overlapping tiles, with objects cut by tile borders rejoined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import ProposalError
from densevl.images import UInt8Array, read_image
from densevl.proposals import packing
from densevl.proposals.base import Proposals, Proposer
from densevl.proposals.sam.crops import Crop, cut_by, laid_back
from densevl.proposals.suppress import unlike

DUPLICATE_IOU = 0.7


class TiledProposer(Proposer):
    """Any proposer over tiles of a large photo and, for large things, over the whole photo.

    Two masks of neighbouring tiles are joined if the border of a tile cuts one of them and they agree where both tiles
    see them. Of duplicate masks the better is kept, and of equal ones that of the whole photo.

    Args:
        inner: the proposer. side: of a tile in pixels; smaller photos go to `inner` directly.
        overlap: of neighbouring tiles, as a fraction of the side. join: IoU within the part that both tiles see from
            which pieces are joined. whole: whether `inner` runs on the whole photo too.

    Raises:
        ProposalError: a setting is out of range.
    """

    def __init__(
        self, inner: Proposer, side: int, *, overlap: float = 0.25, join: float = 0.5, whole: bool = True
    ) -> None:
        if side < 8 or not 0 < overlap <= 0.5 or not 0 < join <= 1:
            raise ProposalError(
                f"tiles of {side} pixels, overlap {overlap:g}, join {join:g}: at least 8 pixels, above 0 up to 0.5, "
                "and above 0 up to 1"
            )
        self.inner, self.name = inner, f"tiles of {inner.name}"
        self.side, self.overlap, self.join, self.whole = side, overlap, join, whole
        if hasattr(inner, "prompt"):
            self.prompt = inner.prompt  # a click needs no tiles

    def __call__(self, image: Any) -> Proposals:
        """See `Proposer.__call__`."""
        rgb = read_image(image)
        size = (rgb.shape[0], rgb.shape[1])
        if max(size) <= self.side:
            return self.inner(rgb)
        crops = tiles(size, self.side, self.overlap)
        joined = join_tiles([self._tile(rgb, crop) for crop in crops], crops, size, self.join)
        layers = [self.inner(rgb), joined] if self.whole else [joined]
        packed = np.concatenate([layer.packed for layer in layers])
        found = Proposals.from_packed(packed, size, np.concatenate([layer.quality for layer in layers]))
        return found.select(unlike(found, found.quality, DUPLICATE_IOU))

    def _tile(self, rgb: UInt8Array, crop: Crop) -> Proposals:
        return self.inner(np.ascontiguousarray(rgb[crop.top : crop.bottom, crop.left : crop.right]))


def tiles(size: tuple[int, int], side: int, overlap: float) -> list[Crop]:
    """The fewest tiles of at most `side` pixels that cover (H, W) and overlap by at least that share, evenly spaced."""

    def starts(length: int) -> list[tuple[int, int]]:
        shared = round(side * overlap)
        count = max(1, -(-(length - shared) // (side - shared)))
        own = min(side, length)
        return [(first, first + own) for first in np.linspace(0, length - own, count).round().astype(int).tolist()]

    return [Crop(left, top, right, bottom, 1) for top, bottom in starts(size[0]) for left, right in starts(size[1])]


def join_tiles(found: Sequence[Proposals], crops: Sequence[Crop], size: tuple[int, int], join: float) -> Proposals:
    """Convert masks of tiles to masks of the image, with pieces of one thing joined; quality is the mean by area.

    Args:
        found: the masks of each tile, at its own size. crops: places of the tiles. size: (H, W) of the image.
    """
    first = np.cumsum([0, *(len(masks) for masks in found)])
    owner = np.arange(first[-1])
    cut = [cut_by(masks.boxes, crop, size) for masks, crop in zip(found, crops, strict=True)]
    for one in range(len(crops)):
        for other in range(one + 1, len(crops)):
            agree = _agreement(found[one], found[other], crops[one], crops[other])
            pieces = (agree >= join) & (cut[one][:, None] | cut[other])
            for a, b in zip(*np.nonzero(pieces), strict=True):
                owners = owner[[first[one] + a, first[other] + b]]
                owner[np.isin(owner, owners)] = owners.min()
    laid = [laid_back(masks, crop, size) for masks, crop in zip(found, crops, strict=True)]
    packed = np.concatenate([masks.packed for masks in laid])
    quality = np.concatenate([masks.quality for masks in laid])
    groups = [np.flatnonzero(owner == name) for name in np.unique(owner)]
    areas = packing.popcount(packed)
    unions = np.zeros((len(groups), packing.row_bytes(size)), np.uint8)
    means = np.zeros(len(groups), np.float32)
    for index, group in enumerate(groups):
        unions[index] = np.bitwise_or.reduce(packed[group], axis=0)
        means[index] = np.average(quality[group], weights=np.maximum(areas[group], 1))
    return Proposals.from_packed(unions, size, np.clip(means, 0, 1))


def _agreement(a: Proposals, b: Proposals, of_a: Crop, of_b: Crop) -> npt.NDArray[np.float32]:
    """IoU (len(a), len(b)) within the part that both tiles see; 0 where they share nothing."""
    left, top = max(of_a.left, of_b.left), max(of_a.top, of_b.top)
    right, bottom = min(of_a.right, of_b.right), min(of_a.bottom, of_b.bottom)
    if right <= left or bottom <= top or not len(a) or not len(b):
        return np.zeros((len(a), len(b)), np.float32)
    inside = [
        masks.masks()[:, top - crop.top : bottom - crop.top, left - crop.left : right - crop.left]
        .reshape(len(masks), -1)
        .astype(np.float32)
        for masks, crop in ((a, of_a), (b, of_b))
    ]
    shared = inside[0] @ inside[1].T
    either = inside[0].sum(axis=1)[:, None] + inside[1].sum(axis=1) - shared
    return np.where(shared > 0, shared / np.maximum(either, 1), 0).astype(np.float32)
