"""Regions marked by a fourth input channel: `alpha`, the operator of Alpha-CLIP (Sun et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from densevl.proposals.base import Proposals
from densevl.regions.operators.crop import encode_each, input_side
from densevl.regions.operators.trained import trained

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone

MEAN, STD = 0.5, 0.26


def alpha(backbone: Backbone, pixels: torch.Tensor, masks: Proposals, *, weights: str | Path) -> torch.Tensor:
    """Embed regions by encoding the whole photo once per region, with the region's mask as the alpha channel.

    Args:
        pixels: (1, 3, H, W) normalised. masks: R masks of that photo, at any size.
        weights: Alpha-CLIP's file of the image tower, for the backbone's architecture.

    Returns:
        (R, E) float32 unit rows; zeros for an empty mask.

    Raises:
        ModelError, WeightsError: see `trained`.
    """
    encode, side = trained(backbone, "alpha", weights), input_side(backbone)
    photo = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True, align_corners=False)[0]

    def view(index: int) -> Iterator[torch.Tensor]:
        mask = torch.from_numpy(masks.mask(index)).to(photo)[None, None]
        shown = F.interpolate(mask, size=(side, side), mode="area")[0]  # covered fractions, so small masks survive
        yield torch.cat([photo, (shown - MEAN) / STD])

    return encode_each(backbone, len(masks), masks.areas.nonzero()[0].tolist(), view, encode)
