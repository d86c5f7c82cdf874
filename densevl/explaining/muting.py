"""What heads give on average over images, for mean ablation; see `backbones.towers.muted`.

Shape letters: B batch, A heads, N tokens (leading ones first), d head width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.nn import functional as F

from densevl.explaining.decomposition import AS_TRAINED
from densevl.recipes.tower import Tower


@torch.no_grad()
def head_means(
    tower: Tower, batches: Iterable[torch.Tensor], chosen: Mapping[int, Sequence[int]]
) -> dict[int, dict[int, torch.Tensor]]:
    """By block and head, both from 0, (2, d): means over images of the leading tokens, and of patches.

    Args:
        batches: pixels (B, 3, H, W) normalised, of the trained size; at least one image. chosen: heads by block.
    """
    totals: dict[int, torch.Tensor] = {}
    count = 0
    for pixels in batches:
        grid = pixels.shape[2] // tower.patch_size, pixels.shape[3] // tower.patch_size
        x_BND = tower.embed(pixels, AS_TRAINED)
        for index in range(max(chosen) + 1):
            if index in chosen:
                block = tower.view(index, grid)
                qkv = block.project(block.norm(x_BND), "qkv")
                given_BANd = F.scaled_dot_product_attention(qkv["q"], qkv["k"], qkv["v"])
                parts = given_BANd[:, :, : tower.prefix], given_BANd[:, :, tower.prefix :]
                own_2Ad = torch.stack([part.mean(dim=2).sum(dim=0) for part in parts])
                totals[index] = totals.get(index, torch.zeros_like(own_2Ad)) + own_2Ad
            x_BND = tower.run(index, x_BND, grid)
        count += len(pixels)
    return {index: {head: totals[index][:, head] / count for head in heads} for index, heads in chosen.items()}
