"""Outlier patches: found before the last block, replaced by the mean of their sound neighbours (SC-CLIP, SFP).

A few patches of a deep CLIP layer hold global information instead of what they show. Shape letters: B batch, N patches,
D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from densevl.recipes.parts import Purify
from densevl.recipes.tower import Grid, Tower
from densevl.recipes.trunk import Trunk

Filler = Callable[[torch.Tensor], torch.Tensor]


def filler(spec: Purify | None, tower: Tower, trunk: Trunk, x_BND: torch.Tensor) -> Filler:
    """What replaces the outliers found in the last block's input patches x, in any patches (B, N, D) of that grid."""
    if spec is None:
        return lambda patches: patches
    if spec.by == "lof":
        outliers = torch.stack([local_outliers(one, spec.neighbours, spec.share) for one in x_BND])
    else:
        outliers = _looked_at(spec, tower, trunk)
    return lambda patches: fill(patches, outliers, trunk.grid)


def local_outliers(x_ND: torch.Tensor, neighbours: int, share: float) -> torch.Tensor:
    """The patches whose surroundings are emptiest for their neighbourhood: (N,) bool, about `share` of them.

    Local outlier factor with each point's own k-distance as its reach: mean over its k nearest of d_k(i) / d_k(j),
    d the squared Euclidean distance.
    """
    k = min(neighbours, len(x_ND) - 1)
    if k < 1:
        return torch.zeros(len(x_ND), dtype=torch.bool, device=x_ND.device)
    distance = torch.cdist(x_ND, x_ND).square()
    nearest, who = distance.topk(k + 1, largest=False)
    reach = nearest[:, -1].clamp(min=1e-12)
    factor = (reach[:, None] / reach[who[:, 1:]]).mean(dim=1)
    return factor > torch.quantile(factor.float(), 1 - share)


def _looked_at(spec: Purify, tower: Tower, trunk: Trunk) -> torch.Tensor:
    """The patches CLS looks at far more than they look at themselves, in the block before the last: (B, N) bool."""
    block = tower.view(tower.depth - 2, trunk.grid)
    qk = block.project(block.norm(trunk.outputs[tower.depth - 2]), "qk")
    attention = (qk["q"] @ qk["k"].mT * qk["q"].shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)
    to_patch = attention[:, 0, tower.prefix :]
    to_self = attention.diagonal(dim1=1, dim2=2)[:, tower.prefix :]
    seen = torch.where(spec.factor * to_patch > to_self, to_patch, -1)
    best, who = seen.topk(min(spec.most, seen.shape[1]), dim=1)
    return torch.zeros_like(seen, dtype=torch.bool).scatter(1, who, best > 0)


def fill(patches_BND: torch.Tensor, outliers_BN: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Replace each outlier by the mean of its up to eight neighbours that are none; without any it stays."""
    sound_B1hw = (~outliers_BN).to(patches_BND).unflatten(1, grid)[:, None]
    patches_BDhw = patches_BND.mT.unflatten(2, grid)

    def around(x: torch.Tensor) -> torch.Tensor:
        total = F.avg_pool2d(x, 3, stride=1, padding=1) * 9
        return total - x

    count = around(sound_B1hw).round()
    mean = around(patches_BDhw * sound_B1hw) / count.clamp(min=1)
    change = outliers_BN.unflatten(1, grid)[:, None] & (count > 0)
    return torch.where(change, mean, patches_BDhw).flatten(2).mT
