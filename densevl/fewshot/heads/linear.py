"""A linear probe that starts from words: logistic regression on the difference from the text logits.

    min over V of  sum_i w_i CE(scale f_i.W + f_i.V, y_i) + strength / 2 |V|^2

Convex, solved by LBFGS. Where V = 0 it is the text classifier, so few or weak examples leave that as it is. At the
minimum the rows of V add up to 0. Shape letters: N samples, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from densevl.fewshot.choosing import JUDGED, best, folds, spread
from densevl.fewshot.head import Head, Samples
from densevl.fewshot.settings import COUNT, Rule

STRENGTH = 0.1  # where examples stand alone and none can be chosen
STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
ROUGH = 25  # steps of LBFGS while it is chosen, each strength from the solution of the one before


class LinearProbe(Head):
    """L2 logistic regression beside the words; its strength is chosen by folds and reported in `found`."""

    name: ClassVar[str] = "linear"
    rules: ClassVar[Mapping[str, Rule]] = {"strength": Rule(above=True, optional=True), "steps": COUNT}

    def __init__(self, strength: float | None = None, steps: int = 200) -> None:
        """Settings.

        Args:
            strength: of the L2 penalty, above 0; None chooses by cross-validation in four folds, where classes have
                two examples or more. steps: of LBFGS, at most.

        Raises:
            ModelError: out of range.
        """
        super().__init__(strength=strength, steps=steps)
        self.strength, self.steps = strength, steps

    def settings(self) -> dict[str, Any]:
        return {"strength": self.strength, "steps": self.steps}

    def _fit(self, samples: Samples) -> None:
        strength = self._choose(samples) if self.strength is None else self.strength
        self.weight = self._solve(samples, strength, self.steps).float()
        self.found["strength"] = strength

    def _judge(self, unit_ND: torch.Tensor, words_NC: torch.Tensor) -> torch.Tensor:
        return words_NC + unit_ND @ self.weight.mT

    def _solve(
        self, samples: Samples, strength: float, steps: int, start_CD: torch.Tensor | None = None
    ) -> torch.Tensor:
        """V (C, D) float64, 0 for classes without examples."""
        seen = torch.bincount(samples.labels, minlength=len(self.text)) > 0
        x_ND, w_N = samples.features.double(), samples.weights.double()
        base_NC = self.scale * x_ND @ self.text[seen].double().mT
        target = (seen.cumsum(0) - 1)[samples.labels]
        weight = x_ND.new_zeros(len(self.text), x_ND.shape[1]) if start_CD is None else start_CD.clone()
        v_CD = weight[seen].requires_grad_(True)
        solver = torch.optim.LBFGS(
            [v_CD], max_iter=steps, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def loss() -> torch.Tensor:
            solver.zero_grad()
            entropy = F.cross_entropy(base_NC + x_ND @ v_CD.mT, target, reduction="none")
            value = (w_N * entropy).sum() + strength / 2 * (v_CD**2).sum()
            value.backward()
            return value

        with torch.enable_grad():
            solver.step(loss)
        weight[seen] = v_CD.detach()
        return weight

    def _choose(self, samples: Samples) -> float:
        some = spread(len(samples), JUDGED).to(samples.labels.device)
        few = Samples(samples.features[some], samples.labels[some], samples.weights[some])
        held = list(folds(few.labels))
        if not held:
            return STRENGTH
        judged = torch.stack(held).any(dim=0)
        words = self.scale * few.features @ self.text.mT

        def candidates() -> Iterator[tuple[float, torch.Tensor]]:
            found: dict[int, torch.Tensor] = {}
            for strength in STRENGTHS:
                logits = words.double()
                for number, out in enumerate(held):
                    rest = Samples(few.features[~out], few.labels[~out], few.weights[~out])
                    found[number] = self._solve(rest, strength, ROUGH, found.get(number))
                    logits[out] += few.features[out].double() @ found[number].mT
                yield strength, logits[judged]

        return best(candidates(), words[judged], self.seen, few.labels[judged]) or STRENGTH

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight}

    def _restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.weight = tensors["weight"]
