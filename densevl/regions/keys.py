"""A vision-only model's features of regions: the keys of a bank, and the queries to one."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from densevl.backbones.proxies import Proxy
from densevl.images import keep_ratio_size, resize
from densevl.inference.windows import WindowGrid
from densevl.proposals.base import Proposals
from densevl.regions.operators.dense import token_means
from densevl.weights import require_finite

LONGEST = 1024
"""The largest long side that the proxy sees, in pixels; CorrCLIP's photos are smaller."""


def region_keys(proxy: Proxy, rgb: np.ndarray, regions: Proposals) -> torch.Tensor:
    """A proxy's mean feature over each region of a uint8 RGB photo, run at its own size: (R, P) unit rows."""
    height, width = rgb.shape[:2]
    if max(height, width) > LONGEST:
        height, width = keep_ratio_size(height, width, LONGEST, LONGEST)
    pixels = torch.from_numpy(resize(rgb, (height, width)).copy()).permute(2, 0, 1)[None].float() / 255
    features = proxy.from_clip(pixels, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    require_finite(features, f"features of proxy '{proxy.name}'")
    tokens_YXP = F.normalize(features, dim=1)[0].permute(1, 2, 0)
    grid = WindowGrid.place(height, width, None, None, 1).with_tokens(*tokens_YXP.shape[:2])
    return F.normalize(token_means(tokens_YXP, grid, regions), dim=1)
