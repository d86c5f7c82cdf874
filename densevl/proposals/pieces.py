"""Another proposer's masks split into connected parts, for models whose masks join separate things."""

from __future__ import annotations

from typing import Any

import numpy as np

from densevl.errors import ProposalError
from densevl.images import read_image
from densevl.proposals import packing
from densevl.proposals.base import Proposals, Proposer
from densevl.proposals.components import components
from densevl.proposals.suppress import unlike


class PieceProposer(Proposer):
    """Masks of another proposer, each connected part by itself, with the quality of its mask.

    Small models of the SAM kind often put similar things into one mask. Things in several parts, such as a cup behind
    a fence, are split too. Prompts go to the other proposer unchanged.

    Args:
        proposer: the other proposer. min_share: parts smaller than this fraction of the image are left out, 0..1.
        duplicate_iou: of parts that overlap by more, the best is kept.

    Raises:
        ProposalError: a number is outside 0..1.
    """

    def __init__(self, proposer: Proposer, *, min_share: float = 0.002, duplicate_iou: float = 0.7) -> None:
        if not 0 <= min_share < 1 or not 0 <= duplicate_iou <= 1:
            raise ProposalError(f"min_share {min_share} and duplicate_iou {duplicate_iou} are shares, 0 to 1")
        self.name = f"pieces of {proposer.name}"
        self.proposer, self.min_share, self.duplicate_iou = proposer, min_share, duplicate_iou

    def __call__(self, image: Any) -> Proposals:
        """See `Proposer.__call__`."""
        rgb = read_image(image)
        size = rgb.shape[:2]
        proposed = self.proposer(rgb)
        least = max(1, self.min_share * size[0] * size[1])
        rows, quality = [], []
        for index in range(len(proposed)):
            numbers = components(proposed.mask(index))
            areas = np.bincount(numbers.ravel())
            for number in np.flatnonzero(areas[1:] >= least) + 1:
                rows.append(packing.pack(numbers == number))
                quality.append(proposed.quality[index])
        if not rows:
            return Proposals.empty(size)
        found = Proposals.from_packed(np.stack(rows), size, np.array(quality))
        return found.select(unlike(found, found.quality, self.duplicate_iou))

    def __getattr__(self, name: str) -> Any:
        if name in ("prompt", "encode"):  # only for proposers that have them
            return getattr(self.proposer, name)
        raise AttributeError(name)
