"""The blocks before the rewired ones, run as trained, with the outputs that a recipe reads later kept aside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from densevl.recipes.parts import PROJECTIONS, scaled
from densevl.recipes.recipe import Recipe
from densevl.recipes.tower import Grid, Tower


@dataclass(frozen=True)
class Trunk:
    """What the trained blocks leave behind.

    Attributes:
        x: (B, N, D) tokens before the first rewired block, leading ones first.
        outputs: tokens (B, N, D) after block l by l, 1-based, 0 before the first block; only those that are read.
        grid: (h, w).
        qkv: projections of the last block, (B, A, N, d) by letter, if they were made before stitching.
    """

    x: torch.Tensor
    outputs: dict[int, torch.Tensor]
    grid: Grid
    qkv: dict[str, torch.Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor], grid: Grid) -> Trunk:
        """The same with every (B, N, C) token tensor changed; `change` gets projections with their heads joined."""

        def heads(t: torch.Tensor) -> torch.Tensor:
            return change(t.transpose(1, 2).flatten(2)).unflatten(2, (t.shape[1], -1)).transpose(1, 2)

        outputs = {layer: change(t) for layer, t in self.outputs.items()}
        return replace(
            self, x=change(self.x), outputs=outputs, grid=grid, qkv={key: heads(t) for key, t in self.qkv.items()}
        )


def run_trunk(tower: Tower, pixels: torch.Tensor, recipe: Recipe, rule: str) -> Trunk:
    """Run every block that the recipe leaves alone."""
    grid = pixels.shape[2] // tower.patch_size, pixels.shape[3] // tower.patch_size
    wanted = tapped(recipe, tower.depth)
    rewired = recipe.rewired
    outputs = {}
    x_BND = tower.embed(pixels, rule)
    for index in range(tower.depth - rewired):
        if index in wanted:
            outputs[index] = x_BND
        x_BND = tower.run(index, x_BND, grid)
    if tower.depth - rewired in wanted:
        outputs[tower.depth - rewired] = x_BND
    qkv = {}
    if recipe.stitch == "qkv":
        last = tower.view(tower.depth - 1, grid)
        qkv = last.project(last.norm(x_BND), recipe.needs)
    return Trunk(x_BND, outputs, grid, qkv)


def tapped(recipe: Recipe, depth: int) -> set[int]:
    """The blocks whose outputs the recipe reads, 0 meaning what enters the first."""
    found: set[int] = set()
    for term in recipe.parts:
        inputs = 1 if term.kind in PROJECTIONS else 0  # projections are made from what enters the block
        found.update(layer - inputs for layer in scaled(term.layers, depth))
    for smooth in (recipe.before, recipe.after):
        if smooth is not None and smooth.by == "tap":
            found.update(scaled((smooth.layer,), depth))
    for value in recipe.values:
        found.update(layer - value.normed for layer in scaled(value.layers, depth))
    if recipe.purify is not None and recipe.purify.by == "attention":
        found.add(depth - 2)
    if recipe.likeness:
        found.update(layer - 1 for layer in scaled((recipe.likeness,), depth))
    if recipe.scope is not None and recipe.scope.cls:
        found.update(range(depth))
    return found
