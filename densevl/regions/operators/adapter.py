"""Regions pooled from CLIP's map with learned weights: `adapter`, the operator of Mask-Adapter (CVPR 2025)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from densevl.images import keep_ratio_size
from densevl.proposals.base import Proposals
from densevl.regions.operators.adapter_net import FINER
from densevl.regions.operators.trained import trained

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone

SHORT, LONG = 800, 1333  # FC-CLIP, on which Mask-Adapter builds, sees photos at this size
MASKS_AT_ONCE = 16


@torch.no_grad()
def adapter(
    backbone: Backbone, pixels: torch.Tensor, masks: Proposals, *, weights: str | Path, short_side: int = SHORT
) -> torch.Tensor:
    """Embed regions by 16 means over places, with weights that Mask-Adapter predicts from the mask and the map.

    Args:
        pixels: (1, 3, H, W) normalised. masks: R masks of that photo, at any size.
        weights: Mask-Adapter's file for the backbone's ConvNeXt. short_side: CLIP's view of the photo, in pixels.

    Returns:
        (R, E) float32 unit rows; zeros for an empty mask.

    Raises:
        ModelError, WeightsError: see `trained`.
    """
    net, tower = trained(backbone, "adapter", weights), backbone.tower  # type: ignore[attr-defined]
    patch = backbone.patch_size
    height, width = keep_ratio_size(pixels.shape[2], pixels.shape[3], short_side, round(short_side * LONG / SHORT))
    h, w = math.ceil(height / patch), math.ceil(width / patch)
    seen = F.interpolate(pixels, size=(h * patch, w * patch), mode="bicubic", antialias=True, align_corners=False)
    trunk_1ND = tower.embed(seen, "size").float()
    map_Ehw = tower.read(trunk_1ND)[0].float().T.unflatten(1, (h, w))
    rows = []
    for start in range(0, len(masks), MASKS_AT_ONCE):
        few = masks.select(slice(start, start + MASKS_AT_ONCE))
        shown = torch.from_numpy(few.masks()).to(map_Ehw)[:, None]
        shown = F.interpolate(shown, size=(FINER * h, FINER * w), mode="area")[:, 0]  # small masks lose nothing
        weights_RMN = net(map_Ehw, shown).flatten(2)
        means_RME = tower.read(weights_RMN @ trunk_1ND)
        filled = torch.from_numpy(few.areas > 0).to(means_RME.device)
        rows.append(F.normalize(means_RME.float().mean(dim=1), dim=-1) * filled[:, None])
    return torch.cat(rows) if rows else map_Ehw.new_zeros(0, backbone.embed_dim)
