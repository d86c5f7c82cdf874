"""DeCLIP's context: another vision model teaches how similar the student's patches are (CVPR 2025).

Shape letters: B pictures, N patches, D width, h/w patch grid.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densevl.backbones.proxies import Proxy
from densevl.recipes.tower import Tower
from densevl.recipes.trunk import run_trunk

SOURCES = ("q", "k", "v", "qk")
"""Projections of the last block whose similarity is trained; "qk" is the mean of q and k."""


def context_loss(own_BDhw: torch.Tensor, taught_BPhw: torch.Tensor) -> torch.Tensor:
    """Return the mean over patches of the distance between rows of two maps of cosines, on the grid of the second.

    Args:
        own_BDhw: projections of the student, heads concatenated. taught_BPhw: features of the teacher, on any grid, to
            which the student's are interpolated bilinearly.
    """
    if own_BDhw.shape[2:] != taught_BPhw.shape[2:]:
        own_BDhw = F.interpolate(own_BDhw, size=taught_BPhw.shape[2:], mode="bilinear", align_corners=False)
    one, other = (F.normalize(part.flatten(2).float(), dim=1) for part in (own_BDhw, taught_BPhw))
    return (one.mT @ one - other.mT @ other).norm(dim=2).mean()


def projections(tower: Tower, pixels: torch.Tensor, source: str, rule: str) -> torch.Tensor:
    """Return projections of the last block at all patches, heads concatenated: (B, D, h, w).

    Args:
        source: one of `SOURCES`. rule: how positions are resized.
    """
    trunk = run_trunk(tower, pixels, rule, leave=1, taps=frozenset())
    block = tower.view(tower.depth - 1, trunk.grid)
    found = block.project(block.norm(trunk.x_BND), source)
    heads_BANd = torch.stack([found[letter] for letter in source]).mean(dim=0)
    return heads_BANd[:, :, trunk.prefix :].transpose(1, 2).flatten(2).mT.unflatten(2, trunk.grid)


def taught(proxy: Proxy, pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Return the context teacher's features of pictures normalised for the student: (B, P, h', w')."""
    return proxy.from_clip(pixels, mean, std, "tokens")
