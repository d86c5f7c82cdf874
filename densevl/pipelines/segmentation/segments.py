"""Segments of a photo, given or proposed: for recipes that stay within them or pool over them, and for votes inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from densevl.errors import ProposalError
from densevl.images import keep_ratio_size, resize
from densevl.proposals.base import Proposals
from densevl.proposals.load import form_of
from densevl.proposals.load import given as read_regions
from densevl.proposals.maps import segment_map
from densevl.recipes import Hints

MINI = "mini-sam"
PROPOSED_SIDE = 256  # long side at which masks are proposed: four times finer than the model draws them
COLOUR_SIDE = 512  # at which those are that follow colours
BY_COLOUR = ("superpixels", "felzenszwalb")

Proposer = Callable[[np.ndarray], Any]
"""uint8 RGB (H, W, 3) to anything `Segments.parse` takes."""


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of one photo.

    Attributes:
        ids: (H, W) int64 segment map, 0 where no segment is; where masks overlap, the smaller has the pixel.
        masks: (M, H, W) bool if they were given as masks, else None.
        clustered: whether they are the recipe's own clusters of patches, which nobody asked for.
    """

    ids: torch.Tensor
    masks: torch.Tensor | None = None
    clustered: bool = False

    @classmethod
    def parse(cls, given: Any, size: tuple[int, int], *, proposed: bool = False) -> Segments:
        """Read regions of a photo.

        Args:
            given: an (H, W) integer map, 0 or less where no segment is; else masks, boxes, RLE or `Proposals`, which
                may overlap, as `proposals.given` takes them. size: (H, W) of the photo. proposed: there may be none.

        Raises:
            ProposalError: none of these, no regions, or those of another photo.
        """
        form = form_of(given, size)
        if form == "segments":
            return cls(torch.from_numpy(segment_map(given, size)))
        photo = np.zeros((*size, 3), np.uint8)
        regions = Proposals.from_masks(given, size) if form == "masks" else read_regions(photo, regions=given)
        if proposed and not len(regions):
            return cls(torch.zeros(size, dtype=torch.int64))
        if not len(regions):
            raise ProposalError(
                f"there are no regions; for this photo give an integer segment map {tuple(size)}, 0 where no segment "
                f"is, or masks (M, {size[0]}, {size[1]})"
            )
        on_top = regions.segment_map().astype(np.int64)
        return cls(torch.from_numpy(on_top), torch.from_numpy(regions.masks()))

    def __len__(self) -> int:
        """How many segments there are."""
        return len(self.masks) if self.masks is not None else int((self.ids.unique() > 0).sum())

    @property
    def electorates(self) -> torch.Tensor:
        """As `majority_vote` takes them: masks, or the map with -1 where no segment is."""
        return self.masks if self.masks is not None else torch.where(self.ids > 0, self.ids, -1)

    def hints(self, hints: Hints, reads: frozenset[str], size: tuple[int, int], device: torch.device) -> Hints:
        """Hints with the segments in the form that a recipe reads, for an image of this size."""
        if "regions" in reads:
            hints = replace(hints, regions=self.at(size, as_masks=False).to(device))
        if "masks" in reads:
            hints = replace(hints, masks=self.at(size, as_masks=True).to(device))
        return hints

    def at(self, size: tuple[int, int], *, as_masks: bool) -> torch.Tensor:
        """A batch of one at another size, read at the nearest pixel: (1, H, W) int64, or masks (1, M, H, W) bool.

        Where there are no segments, one mask without a pixel stands for them.
        """
        rows, cols = (
            torch.from_numpy(((np.arange(new) + 0.5) * old / new).astype(int))
            for new, old in zip(size, self.ids.shape, strict=True)
        )
        if not as_masks:
            return self.ids[rows[:, None], cols][None]
        if not len(self):
            return torch.zeros(1, 1, *size, dtype=torch.bool)
        if self.masks is not None:
            return self.masks[:, rows[:, None], cols][None]
        return _each(self.ids[rows[:, None], cols], self.ids)[None]

    def masks_array(self) -> np.ndarray:
        """The segments as bool masks (M, H, W)."""
        return (self.masks if self.masks is not None else _each(self.ids, self.ids)).numpy()


def _each(ids: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Where each segment of `of` lies in ids (h, w): bool (M, h, w)."""
    names = of.unique()
    return ids == names[names > 0][:, None, None]


def proposer(spec: str | Proposer | None) -> Proposer | None:
    """A way to segment any photo: one of `proposals.NAMES` that needs nothing else, a callable as it is, or None.

    Raises:
        ModelError, MissingExtraError: no such proposer, or it cannot be loaded.
    """
    if spec is None or callable(spec):
        return spec
    find = whole_things(spec)
    return lambda rgb: proposed(find, rgb)


def whole_things(name: str) -> Any:
    """A loaded proposer by name, one whose masks split few objects.

    Raises:
        ModelError, MissingExtraError: no such proposer, or it cannot be loaded.
    """
    from densevl.proposals import load_proposer

    # Box overlap, as in the generator that SAM comes with, leaves fewer masks that split an object.
    settings: dict[str, Any] = {"duplicates": "box"} if name == MINI else {}
    return load_proposer(name, **settings)


def proposed(find: Proposer, rgb: np.ndarray) -> np.ndarray:
    """The segments that a proposer sees in a photo made small: int64 (H, W), 0 where none is, the smaller on top."""
    height, width = rgb.shape[:2]
    side = COLOUR_SIDE if getattr(find, "name", "") in BY_COLOUR else PROPOSED_SIDE
    size = (height, width) if max(height, width) <= side else keep_ratio_size(height, width, side, side)
    ids = torch.from_numpy(find(resize(rgb, size)).segment_map().astype(np.int64))
    return Segments(ids).at((height, width), as_masks=False)[0].numpy()
