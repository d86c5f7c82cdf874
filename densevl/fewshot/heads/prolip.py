"""ProLIP (Fahes et al., TMLR 2025): only the last visual projection is trained, tied to where it was.

    min over P of  mean_i CE(scale normalise(z_i P).W, y_i) + strength |P - P0|^2

z are features before the projection. The result is a matrix, to be put in the model in place of its own: words stay
open. Two parts of CLIPood (Shu et al., ICML 2023), which trains the whole image tower, are here for the projection
alone: a margin, and the mean of the weights over training.
Shape letters: N samples, C classes, D width before the projection, E joint space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch.nn import functional as F

from densevl.errors import ModelError, OptionError
from densevl.fewshot.head import Head, Samples
from densevl.fewshot.settings import COUNT, Rule

AVERAGES = ("none", "beta")


def beta_density(place: float) -> float:
    """The density of Beta(1/2, 1/2) at a place in 0..1, both excluded, but for a factor."""
    return 1 / math.sqrt(place * (1 - place))


def beta_weight(index: int, count: int) -> float:
    """Weight of one of `count` steps: the density of Beta(1/2, 1/2) in the middle of its share of 0..1."""
    return beta_density((index + 0.5) / count)


class RunningMean:
    """The mean of tensors that come one after the other, weighed by `beta_weight`.

    Attributes: value: of those so far, None before the first.
    """

    value: torch.Tensor | None = None

    def __init__(self, count: int) -> None:
        """Prepare. Args: count: of tensors in all."""
        self._count, self._taken, self._total = count, 0, 0.0

    def take(self, new: torch.Tensor) -> torch.Tensor:
        """The mean with one more."""
        weight = beta_weight(self._taken, self._count)
        self._taken, self._total = self._taken + 1, self._total + weight
        old = torch.zeros_like(new) if self.value is None else self.value
        self.value = old + (new - old) * (weight / self._total)
        return self.value


class ProLip(Head):
    """Features (N, D) are those before the projection, scaled to unit length, which changes no cosine after it."""

    name: ClassVar[str] = "prolip"
    parts: ClassVar[tuple[str, ...]] = ("projection",)
    rules: ClassVar[Mapping[str, Rule]] = {
        "strength": Rule(optional=True),
        "steps": COUNT,
        "rate": Rule(above=True),
        "margin": Rule(),
        "average": Rule(words=AVERAGES),
    }

    def __init__(
        self,
        projection: torch.Tensor | None = None,
        strength: float | None = None,
        steps: int = 300,
        rate: float = 3e-3,
        margin: float = 0.0,
        average: str = "none",
    ) -> None:
        """Settings.

        Args:
            projection: (D, E), the model's own. strength: of the tie, 0 or more; None is the paper's 1 / K, with K the
                mean number of examples of a class, times (scale / 100)^2: the loss bends by the square of the scale,
                which is 100 in the paper. steps: of Adam, on all examples. rate: of Adam, as a share of the
                root mean square of the projection's numbers.
            margin: the feature is moved by so much of its class's row before it is compared with all, so that classes
                whose words are alike are held apart the more; 0 or more, CLIPood's is 0.3. average: "none" takes the
                weights after the last step, "beta" their mean over all steps by the density of Beta(1/2, 1/2), so that
                the first and the last count most.

        Raises:
            OptionError: no projection, or a setting out of range.
        """
        super().__init__(strength=strength, steps=steps, rate=rate, margin=margin, average=average)
        if projection is None or projection.ndim != 2:
            raise OptionError("head 'prolip' trains the model's visual projection: give projection=, a matrix (D, E)")
        self.margin, self.average = float(margin), average
        self.initial = projection.detach().float().clone()
        self.projection = self.initial
        self.strength, self.steps, self.rate = strength, steps, rate

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("strength", "steps", "rate", "margin", "average")}

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
        losses: list[float] = []
        mean = RunningMean(self.steps + 1)
        pulled = self.margin * text[target]
        with torch.enable_grad():
            for _ in range(self.steps + 1):
                logits = self.scale * (F.normalize(samples.features @ p_DE, dim=-1) - pulled) @ text.mT
                averaged = mean.take(p_DE.detach())
                entropy = (share * F.cross_entropy(logits, target, reduction="none")).sum()
                losses.append(float(entropy.detach()))
                if len(losses) <= self.steps:
                    solver.zero_grad()
                    (entropy + strength * (p_DE - start).square().sum()).backward()
                    solver.step()
        self.projection = p_DE.detach() if self.average == "none" else averaged
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
