"""Regions of a photo as vectors. With these kept, new words or examples cost only a matrix product."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from densevl.inference.windows import WindowGrid
from densevl.proposals.base import Proposals


@dataclass(frozen=True, eq=False)
class RegionEmbeddings:
    """Embedded regions of one photo; comparing them with any words costs one matrix product.

    Attributes:
        image: uint8 RGB (H, W, 3). regions: R masks of it.
        vectors: unit rows (R, E) float32 by operator; zeros for an empty mask.
        tokens: with order "classify_then_pool", unit features of all windows (Y, X, E) and their grid.
        second: unit rows of the regions that got a second look, by index; grows as words require it.
        gauge: unit rows of a grid of the photo by operator, kept when words and pictures are mixed.
        source: path of the photo, if it came from a file. seconds: time taken.
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
