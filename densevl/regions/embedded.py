"""Regions of a photo as vectors: what is kept so that new words, or examples, cost a matrix product."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from densevl.inference.windows import WindowGrid
from densevl.proposals.base import Proposals


@dataclass(frozen=True, eq=False)
class RegionEmbeddings:
    """Regions of one photo, embedded: any words can be compared with them at the cost of a matrix product.

    Attributes:
        image: uint8 RGB (H, W, 3). regions: R masks of it.
        vectors: unit rows (R, E) float32 by operator; zeros for an empty mask.
        tokens: with order "classify_then_pool", unit features of all windows (Y, X, E) and their grid.
        second: unit rows of the regions that were looked at again, by index; grows when words ask for it.
        gauge: unit rows of a grid of the photo by operator, kept when words and pictures are mixed.
        source: path of the photo, if it came from one. seconds: what it took.
    """

    image: np.ndarray
    regions: Proposals
    vectors: dict[str, torch.Tensor]
    tokens: tuple[torch.Tensor, WindowGrid] | None = None
    second: dict[int, torch.Tensor] = field(default_factory=dict)
    gauge: dict[str, torch.Tensor] = field(default_factory=dict)
    source: str | None = None
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.regions)
