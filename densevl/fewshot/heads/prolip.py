"""ProLIP (Fahes et al., TMLR 2025): only the last visual projection is trained, tied to where it was.

    min over P of  mean_i CE(scale normalise(z_i P).W, y_i) + strength |P - P0|^2

z are features before the projection. The result is a matrix, to be put in the model in place of its own: words stay
open. Shape letters: N samples, C classes, D width before the projection, E joint space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch.nn import functional as F

from densevl.errors import ModelError, OptionError
from densevl.fewshot.head import Head, Samples


class ProLip(Head):
    """Features (N, D) are those before the projection, scaled to unit length, which changes no cosine after it."""

    name: ClassVar[str] = "prolip"

    def __init__(
        self,
        projection: torch.Tensor | None = None,
        strength: float | None = None,
        steps: int = 300,
        rate: float = 3e-3,
    ) -> None:
        """Settings.

        Args:
            projection: (D, E), the model's own. strength: of the tie, 0 or more; None is the paper's 1 / K, with K the
                mean number of examples of a class, times (scale / 100)^2: the loss bends by the square of the scale,
                which is 100 in the paper. steps: of Adam, on all examples. rate: of Adam, as a share of the
                root mean square of the projection's numbers.

        Raises:
            OptionError: no projection, or a setting out of range.
        """
        super().__init__()
        if projection is None or projection.ndim != 2:
            raise OptionError("head 'prolip' trains the model's visual projection: give projection=, a matrix (D, E)")
        if (strength is not None and strength < 0) or steps < 1 or not rate > 0:
            raise OptionError(
                f"strength is {strength}, steps {steps}, rate {rate}: strength is 0 or more, steps at least 1, rate "
                "above 0"
            )
        self.initial = projection.detach().float().clone()
        self.projection = self.initial
        self.strength, self.steps, self.rate = strength, steps, rate

    def settings(self) -> dict[str, Any]:
        return {"strength": self.strength, "steps": self.steps, "rate": self.rate}

    def _fit(self, samples: Samples) -> None:
        if self.text.shape[1] != self.initial.shape[1]:
            raise ModelError(f"words are {self.text.shape[1]} wide, the projection leads to {self.initial.shape[1]}")
        start = self.initial.to(samples.features)
        target, text = (self.seen.cumsum(0) - 1)[samples.labels], self.text[self.seen]
        share = samples.weights / samples.weights.sum()
        shots = float(samples.weights.sum() / self.seen.sum())
        strength = (self.scale / 100) ** 2 / shots if self.strength is None else self.strength
        p_DE = start.clone().requires_grad_(True)
        solver = torch.optim.Adam([p_DE], lr=self.rate * float(start.square().mean().sqrt()))
        losses = []
        with torch.enable_grad():
            for _ in range(self.steps + 1):
                logits = self.scale * F.normalize(samples.features @ p_DE, dim=-1) @ text.mT
                entropy = (share * F.cross_entropy(logits, target, reduction="none")).sum()
                losses.append(float(entropy.detach()))
                if len(losses) <= self.steps:
                    solver.zero_grad()
                    (entropy + strength * (p_DE - start).square().sum()).backward()
                    solver.step()
        self.projection = p_DE.detach()
        moved = float((self.projection - start).norm() / start.norm())
        self.found = {"strength": strength, "loss before": losses[0], "loss": losses[-1], "moved": moved}

    def _embed(self, features_ND: torch.Tensor) -> torch.Tensor:
        return F.normalize(features_ND @ self.projection, dim=-1)

    def _judge(self, unit_ND: torch.Tensor, words_NC: torch.Tensor) -> torch.Tensor:
        return words_NC

    def _width(self) -> int:
        return self.initial.shape[0]

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {"initial": self.initial, "projection": self.projection}

    def _restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.projection = tensors["projection"]

    @classmethod
    def _empty(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Self:
        return cls(tensors["initial"], **settings)
