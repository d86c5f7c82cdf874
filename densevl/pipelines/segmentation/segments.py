"""Segments of a photo, given or proposed, for recipes that work or pool within them, and for votes inside them."""

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
PROPOSED_SIDE = 256  # long side for proposing masks: four times the resolution of the model's masks
COLOUR_SIDE = 512  # the same for proposers that follow colours
BY_COLOUR = ("superpixels", "felzenszwalb")

Proposer = Callable[[np.ndarray], Any]
"""Takes uint8 RGB (H, W, 3) and returns anything that `Segments.parse` accepts."""


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of one photo.

    Attributes:
        ids: (H, W) int64 segment map, 0 where there is no segment. Where masks overlap, the smaller one has the pixel.
        masks: (M, H, W) bool if they were given as masks, else None.
        clustered: whether they are the recipe's own clusters of patches, which were not requested.
    """

    ids: torch.Tensor
    masks: torch.Tensor | None = None
    clustered: bool = False

    @classmethod
    def parse(cls, given: Any, size: tuple[int, int], *, proposed: bool = False) -> Segments:
        """Parse regions of a photo.

        Args:
            given: an (H, W) integer map, 0 or less where there is no segment; or masks, boxes, RLE or `Proposals`,
                which may overlap, as for `proposals.given`. size: (H, W) of the photo. proposed: may be empty.

        Raises:
            ProposalError: If it is none of these, has no regions, or belongs to another photo.
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
                f"there are no regions; for this photo give an integer segment map {tuple(size)}, 0 outside of "
                f"segments, or masks (M, {size[0]}, {size[1]})"
            )
        on_top = regions.segment_map().astype(np.int64)
        return cls(torch.from_numpy(on_top), torch.from_numpy(regions.masks()))

    def __len__(self) -> int:
        """Return the number of segments."""
        return len(self.masks) if self.masks is not None else int((self.ids.unique() > 0).sum())

    @property
    def electorates(self) -> torch.Tensor:
        """The segments for `majority_vote`: masks, or the map with -1 where there is no segment."""
        return self.masks if self.masks is not None else torch.where(self.ids > 0, self.ids, -1)

    def hints(self, hints: Hints, reads: frozenset[str], size: tuple[int, int], device: torch.device) -> Hints:
        """Add the segments to the hints in the form that a recipe reads, for an image of this size."""
        if "regions" in reads:
            hints = replace(hints, regions=self.at(size, as_masks=False).to(device))
        if "masks" in reads:
            hints = replace(hints, masks=self.at(size, as_masks=True).to(device))
        return hints

    def at(self, size: tuple[int, int], *, as_masks: bool) -> torch.Tensor:
        """Resample to another size at the nearest pixel, as a batch of one: (1, H, W) int64 or (1, M, H, W) bool.

        Without segments, the masks are one empty mask.
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
        """Return the segments as bool masks (M, H, W)."""
        return (self.masks if self.masks is not None else _each(self.ids, self.ids)).numpy()


def _each(ids: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Return a mask in `ids` (h, w) for each segment of `of`: bool (M, h, w)."""
    names = of.unique()
    return ids == names[names > 0][:, None, None]


def proposer(spec: str | Proposer | None) -> Proposer | None:
    """Return a function that segments any photo: one of `proposals.NAMES` that needs no input, the callable, or None.

    Raises:
        ModelError, MissingExtraError: If there is no such proposer, or it cannot be loaded.
    """
    if spec is None or callable(spec):
        return spec
    find = whole_things(spec)
    return lambda rgb: proposed(find, rgb)


def whole_things(name: str) -> Any:
    """Load a proposer by name, with settings that split few objects.

    Raises:
        ModelError, MissingExtraError: If there is no such proposer, or it cannot be loaded.
    """
    from densevl.proposals import load_proposer

    # Duplicates by box overlap, as in SAM's own generator, leave fewer masks that split an object.
    settings: dict[str, Any] = {"duplicates": "box"} if name == MINI else {}
    return load_proposer(name, **settings)


def proposed(find: Proposer, rgb: np.ndarray) -> np.ndarray:
    """Propose segments in a small copy of a photo: int64 (H, W), 0 where there is none, the smaller on top."""
    height, width = rgb.shape[:2]
    side = COLOUR_SIDE if getattr(find, "name", "") in BY_COLOUR else PROPOSED_SIDE
    size = (height, width) if max(height, width) <= side else keep_ratio_size(height, width, side, side)
    ids = torch.from_numpy(find(resize(rgb, size)).segment_map().astype(np.int64))
    return Segments(ids).at((height, width), as_masks=False)[0].numpy()
