"""Steps on patch tokens: outliers repaired, CLS added. Smoothing by an affinity is `affinity.Smooth`.

A few patches of a deep CLIP layer hold global information instead of their content. They are found in the input of the
last block and replaced by the mean of their sound neighbours. Shape letters: B batch, N patches, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from densevl.lazy import F, torch
from densevl.recipes.batch import Batch
from densevl.recipes.part import Slots, Step
from densevl.recipes.values import at_least, between, positive

if TYPE_CHECKING:
    from densevl.recipes.tower import Grid


class RepairOutliers(Step):
    """Replaces outlier patches; taps marked `repaired` get the same patches replaced."""

    places = ("before",)
    repairs = True

    def objection(self, recipe: Slots) -> str | None:
        repairs = [step for step in recipe.before if step.repairs]
        if recipe.before[:1] != (self,) or len(repairs) > 1:
            return "outliers are repaired once, first of all; put one repair first in before"
        return None

    @abstractmethod
    def outliers(self, batch: Batch, x_BND: torch.Tensor) -> torch.Tensor:
        """Which patches are outliers: (B, N) bool."""

    def apply(self, batch: Batch, x_BND: torch.Tensor, cls_B1D: torch.Tensor, grid: Grid) -> torch.Tensor:
        outliers_BN = self.outliers(batch, x_BND)
        batch.memo["repair"] = lambda patches_BND: fill(patches_BND, outliers_BN, grid)
        return fill(x_BND, outliers_BN, grid)

    def __str__(self) -> str:
        return "outlier patches replaced by their neighbours' mean"


@dataclass(frozen=True, repr=False)
class RepairByDensity(RepairOutliers):
    """Outliers by the local outlier factor (SC-CLIP, TIP 2025).

    Attributes: neighbours: nearest patches compared. share: of the patches that are outliers.
    """

    neighbours: int = 30
    share: float = 0.05

    def __post_init__(self) -> None:
        at_least(self.neighbours, 1, "the number of neighbours compared")
        between(self.share, 0, 1, "the share of outliers")

    def outliers(self, batch: Batch, x_BND: torch.Tensor) -> torch.Tensor:
        return local_outliers(x_BND, self.neighbours, self.share)


@dataclass(frozen=True, repr=False)
class RepairByAttention(RepairOutliers):
    """Outliers are patches that CLS attends to more than they do to themselves, in the block before (SFP, ICCV 2025).

    Attributes: factor: factor * (CLS to patch) > (patch to itself). most: the largest number of outliers.
    """

    needs_cls = True

    factor: float = 1.5
    most: int = 10

    def __post_init__(self) -> None:
        positive(self.factor, "the factor of CLS to patch")
        at_least(self.most, 1, "the most outliers")

    def own_taps(self, depth: int) -> frozenset[int]:
        return frozenset({depth - 2})

    def outliers(self, batch: Batch, x_BND: torch.Tensor) -> torch.Tensor:
        tower, trunk = batch.tower, batch.trunk
        block = tower.view(tower.depth - 2, trunk.grid)
        qk = block.project(block.norm(trunk.outputs[tower.depth - 2]), "qk")
        attention = (qk["q"] @ qk["k"].mT * qk["q"].shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)
        to_patch = attention[:, 0, trunk.prefix :]
        to_self = attention.diagonal(dim1=1, dim2=2)[:, trunk.prefix :]
        seen = torch.where(self.factor * to_patch > to_self, to_patch, -1)
        best, who = seen.topk(torch.sym_min(self.most, seen.shape[1]), dim=1)
        return torch.zeros_like(seen, dtype=torch.bool).scatter(1, who, best > 0)


def local_outliers(x_BND: torch.Tensor, neighbours: int, share: float) -> torch.Tensor:
    """The patches with the sparsest surroundings relative to their neighbours': (B, N) bool, about `share` of them.

    Local outlier factor with each point's own k-distance as its reach: mean over its k nearest of d_k(i) / d_k(j),
    d the squared Euclidean distance.
    """
    last = x_BND.shape[1] - 1
    if last < 1:
        return torch.zeros_like(x_BND[:, :, 0], dtype=torch.bool)
    distance = torch.cdist(x_BND, x_BND).square()
    nearest, who = distance.topk(torch.sym_min(neighbours, last) + 1, largest=False)
    reach_BN = nearest[:, :, -1].clamp(min=1e-12)
    of_others = reach_BN.gather(1, who[:, :, 1:].flatten(1)).unflatten(1, (last + 1, -1))
    factor_BN = (reach_BN[:, :, None] / of_others).mean(dim=2)
    # The first entry of the order at or under the quantile: nothing lies between it and the quantile.
    ordered_BN = factor_BN.float().sort(dim=1).values
    place = ((1 - share) * (torch.ones_like(ordered_BN[:1]).sum() - 1)).long()
    return factor_BN > ordered_BN.index_select(1, place[None])


def fill(patches_BND: torch.Tensor, outliers_BN: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Replace each outlier by the mean of its (up to eight) sound neighbours; without any it stays."""
    sound_B1hw = (~outliers_BN).to(patches_BND).unflatten(1, grid)[:, None]
    patches_BDhw = patches_BND.mT.unflatten(2, grid)

    def around(x: torch.Tensor) -> torch.Tensor:
        total = F.avg_pool2d(x, 3, stride=1, padding=1) * 9
        return total - x

    count = around(sound_B1hw).round()
    mean = around(patches_BDhw * sound_B1hw) / count.clamp(min=1)
    change = outliers_BN.unflatten(1, grid)[:, None] & (count > 0)
    return torch.where(change, mean, patches_BDhw).flatten(2).mT


@dataclass(frozen=True, repr=False)
class AddCls(Step):
    """A share of the CLS token that enters the block, added to every patch (SC-CLIP).

    Attributes: weight: the share.
    """

    needs_cls = True

    weight: float

    def __post_init__(self) -> None:
        positive(self.weight, "the weight of CLS")

    def apply(self, batch: Batch, x_BND: torch.Tensor, cls_B1D: torch.Tensor, grid: Grid) -> torch.Tensor:
        return x_BND + self.weight * cls_B1D

    def __str__(self) -> str:
        return f"{self.weight:g} of CLS is added"
