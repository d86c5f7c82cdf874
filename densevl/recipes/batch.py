"""The inputs and outputs of a running part: the batch, one rewired block on it, and the outcome.

Shape letters: B batch, N tokens (leading ones first, then h*w patches), D width, A heads, d head width, P width of
another model's features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from densevl.lazy import F, torch
from densevl.recipes.hints import Hints
from densevl.recipes.values import scaled

if TYPE_CHECKING:  # these import torch
    from densevl.recipes.blocks import Block
    from densevl.recipes.tower import Grid, Tower
    from densevl.recipes.trunk import Projections, Trunk

T = TypeVar("T")
Frame = tuple[tuple[int, int, int], tuple[int, int, int]]
"""Extent of an image along rows and along columns, with margins before and after: (before, length, after) each."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of images on its way through a recipe.

    Attributes:
        tower: the image tower. trunk: the output of its trained blocks. hints: given with the pixels.
        memo: values that parts keep for each other while this batch runs, under keys of their own.
    """

    tower: Tower
    trunk: Trunk
    hints: Hints
    memo: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """The result of `make`, computed once for this batch."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def proxy(self, grid: Grid) -> torch.Tensor:
        """The proxy's features, interpolated to a grid: (B, h*w, P)."""
        features = self.hints.proxy
        if tuple(features.shape[-2:]) != grid:
            features = F.interpolate(features, size=grid, mode="bilinear", align_corners=False)
        return features.flatten(2).mT

    def output(self, block: int) -> torch.Tensor:
        """All tokens after a block given for 12 blocks: (B, N, D)."""
        return self.trunk.outputs[scaled((block,), self.tower.depth)[0]]

    def projections(self, block: int, which: str, prefix: int) -> Projections:
        """Another block's projections of its own input, for patches and `prefix` leading tokens."""
        (number,) = scaled((block,), self.tower.depth)
        view = self.tower.view(number - 1, self.trunk.grid)
        tokens_BND = self.trunk.outputs[number - 1][:, self.trunk.prefix - prefix :]
        return view.project(view.norm(tokens_BND), which)


@dataclass(frozen=True, eq=False)
class Pass:
    """One rewired block on one batch, as attention and steps see it.

    Attributes:
        batch: the batch. block: a view of the block.
        x_BND: its input tokens, or only patches if the recipe works on those.
        cls_B1D: the leading token of the input.
        qkv: the projections of x that the attention needs, each (B, A, N, d).
        grid: (h, w) of the output tokens: the tower's, or the proxy's if the attention works on that.
        prefix: leading tokens among them.
        finish: the rest of the block: from heads (B, A, N, d) to the block's output (B, N, D).
        temperature, bias_B1NN: a second pass's changes to the block's own logits: a factor and an addend.
    """

    batch: Batch
    block: Block
    x_BND: torch.Tensor
    cls_B1D: torch.Tensor
    qkv: Projections
    grid: Grid
    prefix: int
    finish: Callable[[torch.Tensor], torch.Tensor]
    temperature: float = 1.0
    bias_B1NN: torch.Tensor | None = None

    @cached_property
    def u_BND(self) -> torch.Tensor:
        """The input after the block's norm; computed on demand, because it is as large as the input."""
        return self.block.norm(self.x_BND)

    def steered(self, temperature: float, bias_BNN: torch.Tensor) -> Pass:
        """The same pass with its own logits scaled, and a bias (B, h*w, h*w) added between patches."""
        padded = F.pad(bias_BNN, (self.prefix, 0, self.prefix, 0))[:, None]
        return replace(self, temperature=temperature, bias_B1NN=padded)

    def read(self, y_BND: torch.Tensor) -> torch.Tensor:
        """Tokens after the block, read one by one into the joint space: (B, N, E), not normalised."""
        return self.batch.tower.read(y_BND)


@dataclass(frozen=True, eq=False)
class Extra:
    """Tokens of a further source after the last block, and the weight of their features."""

    y_BND: torch.Tensor
    weight: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """The output of the rewired end of a tower, before it is read.

    Attributes:
        y_BND: tokens after the last block. extras: those of further sources, which are read separately.
        grid: (h, w). prefix: leading tokens.
        frame: the image's place on the grid; None if it fills it.
    """

    y_BND: torch.Tensor
    extras: tuple[Extra, ...]
    grid: Grid
    prefix: int
    frame: Frame | None = None

    def tensors(self) -> list[torch.Tensor]:
        """All token tensors, (B, N, D) each, which are joined over windows."""
        return [self.y_BND, *(extra.y_BND for extra in self.extras)]

    def like(self, tensors: list[torch.Tensor], grid: Grid) -> Outcome:
        """The same outcome with other token tensors, in the order of `tensors`."""
        extras = tuple(replace(old, y_BND=new) for old, new in zip(self.extras, tensors[1:], strict=True))
        return replace(self, y_BND=tensors[0], extras=extras, grid=grid)
