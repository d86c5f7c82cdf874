"""open_clip's `ModifiedResNet`: a ResNet whose attention pool leads into the joint space.

The pool is a last attention layer over a mean token and the map's tokens, with positions; the mean token's output is
the embedding. A single place is read by its value and the output projection, as in MaskCLIP.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from densevl.backbones.positions import resize_positions
from densevl.backbones.towers.whole import Undivided


class PooledResNet(Undivided):
    """A `ModifiedResNet` of open_clip: no blocks; token 0 is the mean of the map."""

    kind = "a ModifiedResNet, a convolutional tower that runs as a whole"
    prefix = 1
    patch_size = 32

    def __init__(self, visual: Any) -> None:
        """Inspect a built tower; nothing is copied."""
        self._visual = visual
        size = visual.image_size
        self.image_size = (size, size) if isinstance(size, int) else tuple(size)
        self.embed_dim = visual.attnpool.c_proj.out_features

    def embed(self, pixels: torch.Tensor, rule: str) -> torch.Tensor:
        visual = self._visual
        x = visual.stem(pixels.to(visual.conv1.weight.dtype))
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)
        table = visual.attnpool.positional_embedding
        side = round((len(table) - 1) ** 0.5)
        positions = resize_positions(table, (side, side), (x.shape[-2], x.shape[-1]), rule)
        patches_BND = x.flatten(2).transpose(1, 2)
        return torch.cat([patches_BND.mean(dim=1, keepdim=True), patches_BND], dim=1) + positions.to(x.dtype)

    def read(self, y_BND: torch.Tensor) -> torch.Tensor:
        pool = self._visual.attnpool
        return pool.c_proj(pool.v_proj(y_BND))

    def pool(self, x_BND: torch.Tensor) -> torch.Tensor:
        pool = self._visual.attnpool
        q, k, v = (
            layer(tokens).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
            for layer, tokens in ((pool.q_proj, x_BND[:, :1]), (pool.k_proj, x_BND), (pool.v_proj, x_BND))
        )
        return pool.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))[:, 0]
