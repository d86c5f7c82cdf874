"""Run the blocks that stay as trained, and keep what a recipe reads of them later.

Shape letters: B batch, N tokens (leading ones first), D width, A heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch

from densevl.recipes.tower import Grid, Tower

Projections = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Trunk:
    """The output of the trained blocks.

    Attributes:
        x_BND: tokens before the first rewired block.
        outputs: tokens (B, N, D) after block l by l, 1-based, 0 before the first block; only those that are read.
        grid: (h, w). prefix: leading tokens that are not patches.
        qkv: projections of the last block, (B, A, N, d) by letter, if windows are joined at them; otherwise empty.
    """

    x_BND: torch.Tensor
    outputs: dict[int, torch.Tensor]
    grid: Grid
    prefix: int
    qkv: Projections = field(default_factory=dict)

    def tensors(self) -> list[torch.Tensor]:
        """All token tensors, (B, N, C) each, which are joined over windows."""
        heads = (t.transpose(1, 2).flatten(2) for t in self.qkv.values())
        return [self.x_BND, *self.outputs.values(), *heads]

    def like(self, tensors: Sequence[torch.Tensor], grid: Grid) -> Self:
        """The same with other token tensors, in the order of `tensors`."""
        x_BND, *rest = tensors
        outputs = dict(zip(self.outputs, rest, strict=False))
        joined = zip(self.qkv.items(), rest[len(outputs) :], strict=True)
        qkv = {key: t.unflatten(2, (old.shape[1], -1)).transpose(1, 2) for (key, old), t in joined}
        return replace(self, x_BND=x_BND, outputs=outputs, grid=grid, qkv=qkv)


def run_trunk(
    tower: Tower, pixels: torch.Tensor, rule: str, *, leave: int, taps: frozenset[int], projects: str = ""
) -> Trunk:
    """Run every block but the last few.

    Args:
        rule: how positions are resized. leave: how many of the last blocks are not run.
        taps: the blocks whose outputs are kept, 0 for the input of the first.
        projects: the projections of the last block to compute, a subset of "qkv".
    """
    grid = pixels.shape[2] // tower.patch_size, pixels.shape[3] // tower.patch_size
    outputs = {}
    x_BND = tower.embed(pixels, rule)
    for index in range(tower.depth - leave):
        if index in taps:
            outputs[index] = x_BND
        x_BND = tower.run(index, x_BND, grid)
    if tower.depth - leave in taps:
        outputs[tower.depth - leave] = x_BND
    qkv = {}
    if projects:
        last = tower.view(tower.depth - 1, grid)
        qkv = last.project(last.norm(x_BND), projects)
    return Trunk(x_BND, outputs, grid, tower.prefix, qkv)
