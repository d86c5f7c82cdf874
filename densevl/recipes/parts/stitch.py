"""Where the windows of an image are joined on one patch grid, and the operations on the whole image.

Shape letters: B batch, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from densevl import kernels
from densevl.errors import RecipeError
from densevl.lazy import F, torch
from densevl.recipes.batch import Frame, Outcome
from densevl.recipes.hints import Hints
from densevl.recipes.part import Part, Slots, Stitch
from densevl.recipes.parts.affinity import Relative, Rule
from densevl.recipes.values import positive

if TYPE_CHECKING:
    from densevl.recipes.tower import Grid


@dataclass(frozen=True, repr=False)
class SamAttention(Part):
    """Spread the whole image by the attention of SAM's encoder, limited by its values' cosines (Trident, ICCV 2025).

    Attributes:
        factor: pairs over this many times their mean cosine count. cap: the highest limit.
        negative: replaces a limit below 0, or None.
    """

    own_reads = frozenset({"sam"})

    factor: float = 1.2
    cap: float = 0.9
    negative: float | None = None

    def __post_init__(self) -> None:
        positive(self.factor, "the factor of SAM's attention")

    def spread(self, outcome: Outcome, hints: Hints) -> Outcome:
        """Spread patches over the image; the output is on SAM's grid, with the margin if there is one."""
        sam = hints.sam
        tokens_BDhw = outcome.y_BND[:, outcome.prefix :].mT.unflatten(2, outcome.grid)
        inner_BDhw = _resampled(tokens_BDhw, outcome.frame, sam.covered, inwards=True)
        mixed_BND = kernels.affinity_mix(
            sam.q,
            sam.k,
            sam.v,
            inner_BDhw.flatten(2).mT,
            grid=sam.grid,
            covered=sam.covered,
            rel=sam.rel,
            factor=self.factor,
            cap=self.cap,
            negative=self.negative,
        )
        if outcome.frame is not None and any(before or after for before, _, after in outcome.frame):
            laid = _resampled(mixed_BND.mT.unflatten(2, sam.covered), outcome.frame, sam.covered, inwards=False)
            mixed_BND = laid.flatten(2).mT
        y_BND = torch.cat([outcome.y_BND[:, : outcome.prefix], mixed_BND], dim=1)
        return replace(outcome, y_BND=y_BND, grid=sam.covered)

    def __str__(self) -> str:
        return "the whole image is spread by the attention of SAM's encoder"


@dataclass(frozen=True, repr=False)
class OwnCosines(Part):
    """Spread the whole image over patches with similar tokens (RADSeg, 2026).

    Attributes: rule: how cosines become weights.
    """

    rule: Rule = Relative(10.0, 1.0)  # noqa: RUF009  # frozen

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise RecipeError("an image is spread by a rule: Softmax, Relative or Floor")

    def spread(self, outcome: Outcome, hints: Hints) -> Outcome:
        """Spread patches over the image; leading tokens do not change."""
        lead_BND, patches_BND = outcome.y_BND[:, : outcome.prefix], outcome.y_BND[:, outcome.prefix :]
        mixed_BND = self.rule.spread(F.normalize(patches_BND, dim=-1), patches_BND)
        return replace(outcome, y_BND=torch.cat([lead_BND, mixed_BND], dim=1))

    def __str__(self) -> str:
        return f"the whole image is spread over patches that are alike{self.rule}"


def _resampled(maps_BDhw: torch.Tensor, frame: Frame | None, size: Grid, *, inwards: bool) -> torch.Tensor:
    """Resample maps of an image with its margin to the image alone, or the other way round: (B, D, *size)."""
    axes = []
    for (before, length, after), count in zip(frame or ((0, 1, 0), (0, 1, 0)), size, strict=True):
        total, places = before + length + after, torch.arange(count) + 0.5
        if inwards:
            axes.append(2 * (before + places * length / count) / total - 1)
        else:
            axes.append(2 * (-before + places * total / count) / length - 1)
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1).to(maps_BDhw)
    grid = grid.expand(maps_BDhw.shape[0], *grid.shape)
    return F.grid_sample(maps_BDhw, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True, repr=False)
class JoinedProjections(Stitch):
    """Projections of the last block are averaged on the image's grid before its one attention (OV-Stitcher, 2026)."""

    projections = True

    def objection(self, recipe: Slots) -> str | None:
        if recipe.blocks != 1 or recipe.readout.leaves not in (None, 1):
            return "projections are joined for one block, and it runs more; join features instead"
        if recipe.before:
            return "patches are changed before they are projected; join features instead"
        return None

    def __str__(self) -> str:
        return "windows are joined into one grid before the last block's attention"


@dataclass(frozen=True, repr=False)
class JoinedFeatures(Stitch):
    """The last block's output in each window is averaged on the image's grid, then read (Trident).

    Attributes: spread: an operation on the joined tokens first, or None.
    """

    projections = False

    spread: SamAttention | OwnCosines | None = None

    def objection(self, recipe: Slots) -> str | None:
        if recipe.readout.needs_trunk:
            return "its read-out looks into the blocks of each window, which joined features no longer have"
        if self.spread is not None and any(source.after_norm for source in recipe.adds):
            return "the whole image is spread before the norm, behind which other sources are added"
        return None

    def mix(self, outcome: Outcome, hints: Hints) -> Outcome:
        return outcome if self.spread is None else self.spread.spread(outcome, hints)

    def __str__(self) -> str:
        spread = "" if self.spread is None else f", and {self.spread}"
        return f"windows are joined into one grid after the last block{spread}"
