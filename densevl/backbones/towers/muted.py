"""Heads replaced by their average output: mean ablation (Gandelsman et al., ICLR 2024, section 4).

Shape letters: B batch, A heads, N tokens (leading ones first), d head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from densevl.recipes.blocks import Block, as_trained
from densevl.recipes.tower import Grid, Tower

Means = Mapping[int, torch.Tensor]
"""By head, from 0, (2, d): the means for the leading tokens, and for patches."""


class MutedTower:
    """A tower in which some heads always give their means; everything else is unchanged."""

    replaces = True

    def __init__(self, tower: Tower, means: Mapping[int, Means]) -> None:
        """Wrap a tower. Args: means: by block, from 0."""
        self._tower, self.muted = tower, dict(means)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self._tower, name)

    def view(self, index: int, grid: Grid) -> Block:
        """The parts of block `index`; see `Tower.view`."""
        block = self._tower.view(index, grid)
        if index not in self.muted:
            return block
        return _MutedBlock(block, self.muted[index], grid[0] * grid[1], self._tower.prefix)

    def run(self, index: int, x_BND: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Block `index`; see `Tower.run`."""
        muted = index in self.muted
        return as_trained(self.view(index, grid), x_BND) if muted else self._tower.run(index, x_BND, grid)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, S, S) of the trained size to image embeddings (B, D)."""
        grid = pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size
        x_BND = self._tower.embed(pixels, getattr(self._tower, "rule", "size"))
        for index in range(self.depth):
            x_BND = self.run(index, x_BND, grid)
        return self._tower.pool(x_BND)


class _MutedBlock:
    """The view of a block with muted heads."""

    def __init__(self, block: Block, means: Means, patches: int, prefix: int) -> None:
        self._block, self._means, self._patches, self._prefix = block, means, patches, prefix

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._block, name)

    def over(self, module: Any) -> _MutedBlock:
        return _MutedBlock(self._block.over(module), self._means, self._patches, self._prefix)

    def unrotated(self) -> _MutedBlock:
        return _MutedBlock(self._block.unrotated(), self._means, self._patches, self._prefix)

    def projected(self, heads_BANd: torch.Tensor, add_BND: torch.Tensor | None = None) -> torch.Tensor:
        return self._block.projected(self._with_means(heads_BANd), add_BND)

    def merge(self, heads_BANd: torch.Tensor, add_BND: torch.Tensor | None = None) -> torch.Tensor:
        return self._block.merge(self._with_means(heads_BANd), add_BND)

    def _with_means(self, heads_BANd: torch.Tensor) -> torch.Tensor:
        """With as many tokens as the tower has, the first are leading ones; otherwise all are patches."""
        leading = self._prefix if heads_BANd.shape[2] == self._prefix + self._patches else 0
        heads_BANd = heads_BANd.clone()
        for head, (lead_d, patch_d) in self._means.items():
            heads_BANd[:, head, :leading] = lead_d
            heads_BANd[:, head, leading:] = patch_d
        return heads_BANd
