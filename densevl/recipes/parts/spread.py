"""Propagation of the scores of all windows together over a graph of patches (LPOSS, CVPR 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from densevl.lazy import torch
from densevl.recipes.part import Proxy, Slots, Spread
from densevl.recipes.values import at_least, between, positive


@dataclass(frozen=True, repr=False)
class LabelPropagation(Spread):
    """Scores flow between patches that a proxy finds similar, across windows.

    Attributes:
        proxy: its features are compared.
        alpha: how far scores travel, within 0..1. neighbours: edges per patch. power: exponent of the cosine.
        falloff: per pixel of distance.
        steps: of the solver; scores are then 1 / (1 - alpha) times as large, as in the authors' code, which stops at
            10. None solves exactly and keeps the scale of cosines.
    """

    proxy: Proxy
    alpha: float = 0.95
    neighbours: int = 400
    power: float = 3.0
    falloff: float = 0.01
    steps: int | None = None

    def __post_init__(self) -> None:
        positive(self.power, "the power of label propagation")
        between(self.alpha, 0, 1, "alpha of label propagation")
        at_least(self.neighbours, 2, "the number of neighbours of label propagation")
        if self.steps is not None:
            at_least(self.steps, 1, "the number of steps of label propagation")

    def objection(self, recipe: Slots) -> str | None:
        joined = "scores flow between windows, and joined windows are one; leave stitch out"
        return None if recipe.stitch is None else joined

    def spread(self, scores_NT: torch.Tensor, features_NP: torch.Tensor, places_N2: torch.Tensor) -> torch.Tensor:
        from densevl.refine import PatchGraph

        graph = PatchGraph(features_NP, places_N2, neighbours=self.neighbours, power=self.power, falloff=self.falloff)
        found = graph.propagate(scores_NT, alpha=self.alpha, steps=self.steps)
        # A constant comes out 1 / (1 - alpha) times as large; dividing keeps scores on the scale of cosines.
        return found if self.steps is not None else (1 - self.alpha) * found

    def __str__(self) -> str:
        return "scores of all windows flow between patches that another model finds alike"
