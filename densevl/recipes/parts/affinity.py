"""Attention and smoothing by the cosines of features: a block's own, or another model's.

Shape letters: B batch, N tokens, P width of compared features, E width of values, A heads, d head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from densevl import kernels
from densevl.errors import RecipeError
from densevl.lazy import F, torch
from densevl.recipes.batch import Batch, Pass
from densevl.recipes.part import Attention, Part, PatchFeatures, Proxy, Slots, Step, Tap
from densevl.recipes.parts.regions import Regions
from densevl.recipes.values import at_least, between, check, positive

if TYPE_CHECKING:
    from densevl.recipes.tower import Grid


class Rule(Part, ABC):
    """How cosines become weights."""

    @abstractmethod
    def spread(
        self, unit_BNP: torch.Tensor, v_BNE: torch.Tensor, ids_BN: torch.Tensor | None = None, blank: int | None = None
    ) -> torch.Tensor:
        """Spread values over similar tokens: (B, N, E). A token always attends to itself.

        Args:
            unit_BNP: unit rows. ids_BN: the region of each token, to which its attention is limited.
            blank: the id of no region, see `regions.Regions`.
        """


@dataclass(frozen=True, repr=False)
class Softmax(Rule):
    """softmax(temperature * cosine): no threshold."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        positive(self.temperature, "temperature")

    def spread(
        self, unit_BNP: torch.Tensor, v_BNE: torch.Tensor, ids_BN: torch.Tensor | None = None, blank: int | None = None
    ) -> torch.Tensor:
        return kernels.affinity_apply(unit_BNP, v_BNE, gamma=self.temperature, regions=ids_BN, blank=blank)

    def __str__(self) -> str:
        return f" (softmax of {self.temperature:g} x cosine)"


@dataclass(frozen=True, repr=False)
class Relative(Rule):
    """softmax(gamma * (G - beta * mean G)) without entries under zero, G the cosines (ProxyCLIP, ECCV 2024).

    The mean is taken per image. With `floor`, cosines under it first become 0, for the mean too (SFP).
    """

    gamma: float = 3.0
    beta: float = 1.2
    floor: float | None = None

    def __post_init__(self) -> None:
        positive(self.gamma, "gamma")

    def spread(
        self, unit_BNP: torch.Tensor, v_BNE: torch.Tensor, ids_BN: torch.Tensor | None = None, blank: int | None = None
    ) -> torch.Tensor:
        return kernels.affinity_apply(
            unit_BNP, v_BNE, gamma=self.gamma, beta=self.beta, floor=self.floor, regions=ids_BN, blank=blank
        )

    def __str__(self) -> str:
        return " more than the average" if self.beta else " at all"


@dataclass(frozen=True, repr=False)
class Floor(Rule):
    """The cosine if it is at least `floor`, otherwise 0; rows divided by their sums."""

    floor: float

    def __post_init__(self) -> None:
        between(self.floor, -1, 1, "the floor of cosines")

    def spread(
        self, unit_BNP: torch.Tensor, v_BNE: torch.Tensor, ids_BN: torch.Tensor | None = None, blank: int | None = None
    ) -> torch.Tensor:
        return kernels.affinity_apply(unit_BNP, v_BNE, floor=self.floor, linear=True, regions=ids_BN, blank=blank)

    def __str__(self) -> str:
        return f", from cosine {self.floor:g}"


@dataclass(frozen=True, repr=False)
class Affinity(Attention):
    """Patches attend to patches with similar features: a block's own (`Tap`) or another model's (`Proxy`).

    Attributes:
        source: the features. rule: how cosines become weights.
        within: attend only within regions of the image.
        grid: "tower", or a finer one to which values are interpolated: "proxy", that of its features, or a number,
            by which it is finer than the tower's. The proxy's features are interpolated to it as well.
        swapped: as in the code of ProxyCLIP and its followers, fold values with height and width swapped before
            interpolating them, which is right only for squares.
    """

    patches_only = True

    source: PatchFeatures
    rule: Rule
    within: Regions | None = None
    grid: str | int = "tower"
    swapped: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.source, PatchFeatures) or not isinstance(self.rule, Rule):
            raise RecipeError("an affinity compares features of a Tap or a Proxy by a rule: Softmax, Relative or Floor")
        if isinstance(self.grid, str):
            check(self.grid, ("tower", "proxy"), "the grid of an affinity")
        else:
            at_least(self.grid, 2, "how many times as fine as the tower's the grid of an affinity is")
        if self.grid != "tower" and not isinstance(self.source, Proxy):
            raise RecipeError("only an affinity of a Proxy can work on another grid than the tower's")
        if self.swapped and self.grid == "tower":
            raise RecipeError('swapped is about values on another grid than the tower\'s; set grid="proxy"')

    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        unit_BNP = F.normalize(self.source.of(run.batch, run.grid), dim=-1)
        joined_BND = v.transpose(1, 2).flatten(2)
        ids, blank = (None, None) if self.within is None else self.within.tokens(run.batch, run.grid)
        spread = self.rule.spread(unit_BNP, joined_BND, ids, blank)
        return spread.unflatten(2, (v.shape[1], -1)).transpose(1, 2)

    def __str__(self) -> str:
        alike = (
            "that another model finds alike" if isinstance(self.source, Proxy) else f"with like features {self.source}"
        )
        return f"patches look at patches {alike}{self.rule}{'' if self.within is None else ', within a region'}"


@dataclass(frozen=True, repr=False)
class Recursive(Attention):
    """Tokens attend to tokens for which the trained attention, projected, is similar in a head (RADSeg, 2026).

    Attributes: rule: how cosines become weights.
    """

    projects = "qkv"

    rule: Rule = Relative(10.0, 0.0)  # frozen

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise RecipeError("a recursive attention compares by a rule: Softmax, Relative or Floor")

    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        first = kernels.grid_attention(
            run.qkv["q"], run.qkv["k"], v, run.grid, run.prefix, None, v.shape[-1] ** -0.5, extra=run.bias_B1NN
        )
        heads = run.block.projected(first).unflatten(-1, (v.shape[1], -1)).transpose(1, 2)
        unit = F.normalize(heads, dim=-1).flatten(0, 1)
        return self.rule.spread(unit, v.flatten(0, 1)).unflatten(0, v.shape[:2])

    def __str__(self) -> str:
        return f"in each head tokens look at those that the trained attention made alike{self.rule}"


@dataclass(frozen=True, repr=False)
class Smooth(Step):
    """Spread features over similar patches.

    Attributes: source, rule: as `Affinity`.
    """

    places = ("before", "after", "joint")

    source: PatchFeatures
    rule: Rule

    def __post_init__(self) -> None:
        if not isinstance(self.source, PatchFeatures) or not isinstance(self.rule, Rule):
            raise RecipeError("smoothing compares features of a Tap or a Proxy by a rule: Softmax, Relative or Floor")

    def objection(self, recipe: Slots) -> str | None:
        tapped = isinstance(self.source, Tap)
        if tapped and self in recipe.joint:
            return "in the joint space only a Proxy's features are at hand for smoothing"
        if tapped and self in recipe.after and recipe.attention.grid != "tower":
            return "after the attention patches lie on a finer grid, those tapped do not; smooth by the Proxy"
        return None

    def apply(self, batch: Batch, x_BND: torch.Tensor, cls_B1D: torch.Tensor, grid: Grid) -> torch.Tensor:
        return self.rule.spread(F.normalize(self.source.of(batch, grid), dim=-1), x_BND)

    def __str__(self) -> str:
        return f"features spread over like patches ({self.source}{self.rule})"
