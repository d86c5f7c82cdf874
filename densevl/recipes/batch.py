"""What a part sees when it runs: the batch, one rewired block on it, and what comes out.

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
"""Pixels of an image along rows and along columns, margin before and after it: (before, length, after) each."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of images on its way through a recipe.

    Attributes:
        tower: the image tower. trunk: what its trained blocks left. hints: what came with the pixels.
        memo: what parts keep for each other while this batch runs, under keys of their own.
    """

    tower: Tower
    trunk: Trunk
    hints: Hints
    memo: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` gives, made once for this batch."""
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
        """Projections that another block makes of its own input, of patches and `prefix` leading tokens."""
        (number,) = scaled((block,), self.tower.depth)
        view = self.tower.view(number - 1, self.trunk.grid)
        tokens_BND = self.trunk.outputs[number - 1][:, self.trunk.prefix - prefix :]
        return view.project(view.norm(tokens_BND), which)


@dataclass(frozen=True, eq=False)
class Pass:
    """One rewired block on one batch: what attention and steps see.

    Attributes:
        batch: the batch. block: a view of the block.
        x_BND: the tokens that enter it, patches alone where the recipe works on those.
        cls_B1D: the leading token that enters with them.
        qkv: the projections of x that the attention asked for, each (B, A, N, d).
        grid: (h, w) of the tokens that come out: the tower's, or the proxy's where the attention works on that.
        prefix: leading tokens among them.
        finish: the rest of the block: what comes of heads (B, A, N, d) to the block's output (B, N, D).
        temperature, bias_B1NN: what a second pass does to the block's own logits: a factor, and what is added.
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
        """The tokens that enter it behind the block's norm; made when asked for, since it is as large as they are."""
        return self.block.norm(self.x_BND)

    def steered(self, temperature: float, bias_BNN: torch.Tensor) -> Pass:
        """The same with its own logits scaled, and a bias (B, h*w, h*w) added to those between patches."""
        padded = F.pad(bias_BNN, (self.prefix, 0, self.prefix, 0))[:, None]
        return replace(self, temperature=temperature, bias_B1NN=padded)

    def read(self, y_BND: torch.Tensor) -> torch.Tensor:
        """Tokens after the block in the joint space, each for itself: (B, N, E), not normalised."""
        return self.batch.tower.read(y_BND)


@dataclass(frozen=True, eq=False)
class Extra:
    """Tokens of a further source after the last block, and what their features count."""

    y_BND: torch.Tensor
    weight: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the rewired end of a tower gives, before it is read.

    Attributes:
        y_BND: tokens after the last block. extras: those of further sources that are read for themselves.
        grid: (h, w). prefix: leading tokens.
        frame: where the image lies on the grid; None where it fills it.
    """

    y_BND: torch.Tensor
    extras: tuple[Extra, ...]
    grid: Grid
    prefix: int
    frame: Frame | None = None

    def tensors(self) -> list[torch.Tensor]:
        """All token tensors, (B, N, D) each: what is joined over windows."""
        return [self.y_BND, *(extra.y_BND for extra in self.extras)]

    def like(self, tensors: list[torch.Tensor], grid: Grid) -> Outcome:
        """The same with other token tensors, in the order of `tensors`."""
        extras = tuple(replace(old, y_BND=new) for old, new in zip(self.extras, tensors[1:], strict=True))
        return replace(self, y_BND=tensors[0], extras=extras, grid=grid)
