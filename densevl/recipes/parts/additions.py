"""Further sources beside the last block's own input: the outputs or inputs of other blocks.

The embedding of regions is `regions.RegionEmbedding`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from densevl.errors import RecipeError
from densevl.lazy import torch
from densevl.recipes.batch import Pass
from densevl.recipes.part import Addition, Attention, Slots
from densevl.recipes.values import block_numbers, listed, scaled


@dataclass(frozen=True, repr=False)
class OtherBlocks(Addition):
    """Outputs of other blocks, summed, pass through the rewired block as well.

    Attributes:
        blocks: their numbers. mean: take their mean instead of their sum.
        attention: replaces the recipe's for them.
        after_norm: whether features are added, each after the last norm (CorrCLIP), rather than tokens before it
            (SC-CLIP).
        deeper: (depth, first, last) each: the authors' blocks, in their own numbers, for towers where these differ from
            the ones that `blocks` scales to.
    """

    blocks: tuple[int, ...]
    mean: bool = False
    attention: Attention | None = None
    after_norm: bool = False
    deeper: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", block_numbers(self.blocks))
        for depth, first, last in self.deeper:
            if not 1 <= first <= last <= depth:
                raise RecipeError(f"deeper holds {(depth, first, last)}; give a depth, and its first and last block")

    def own_taps(self, depth: int) -> frozenset[int]:
        return frozenset(self.numbers(depth))

    def numbers(self, depth: int) -> tuple[int, ...]:
        """The blocks in a tower of `depth`."""
        own = {known: tuple(range(first, last + 1)) for known, first, last in self.deeper}
        return own.get(depth) or scaled(self.blocks, depth)

    def objection(self, recipe: Slots) -> str | None:
        other, own = self.attention, recipe.attention
        if other is None:
            return None
        if other == own:
            return "the attention for other blocks is the recipe's own; leave it out"
        if (other.patches_only, other.grid) != (own.patches_only, own.grid):
            return "the attention for other blocks gives other tokens than the recipe's; they cannot be added"
        return None

    def tokens(self, run: Pass, through: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        outputs = run.batch.trunk.outputs
        first, *others = self.numbers(run.batch.tower.depth)
        x_BND = sum((outputs[number] for number in others), start=outputs[first])
        x_BND = x_BND / (1 + len(others)) if self.mean else x_BND
        return [through(x_BND, self.attention)]

    def __str__(self) -> str:
        return f"the {'mean' if self.mean else 'sum'} of the outputs of {listed(self.blocks)} goes through it as well"


@dataclass(frozen=True, repr=False)
class BlockInputs(Addition):
    """The normalised input of each of some blocks passes through the rewired block separately (CLIPer).

    Attributes: blocks: their numbers; those that coincide on a small tower count once.
    """

    blocks: tuple[int, ...]
    after_norm = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", block_numbers(self.blocks))

    def own_taps(self, depth: int) -> frozenset[int]:
        return frozenset(number - 1 for number in scaled(self.blocks, depth))

    def tokens(self, run: Pass, through: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        tower, trunk = run.batch.tower, run.batch.trunk
        numbers = dict.fromkeys(scaled((number,), tower.depth)[0] for number in self.blocks)
        inputs = (tower.view(number - 1, trunk.grid).norm(trunk.outputs[number - 1]) for number in numbers)
        return [through(x_BND, None) for x_BND in inputs]

    def __str__(self) -> str:
        return f"the normalised inputs of {listed(self.blocks)} go through it as well, each for itself"
