"""APE (Zhu et al., ICCV 2023), training-free: Tip-Adapter on the channels that tell classes apart.

A channel is good where classes are unlike in it and the words for them vary in it. An example counts the more, the
less the words alone would have found its class. Shape letters: M examples, C classes, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from densevl.fewshot.heads.tip import TipAdapter
from densevl.fewshot.settings import Rule

WEIGHTS = (0.7, 0.3)  # of unlikeness and variance, the paper's on ImageNet


def criterion(
    keys_MD: torch.Tensor, labels_M: torch.Tensor, text_CD: torch.Tensor, weights: tuple[float, float] = WEIGHTS
) -> torch.Tensor:
    """How good each channel is, (D,): -w0 S + w1 V.

    S is the mean, over all pairs of vectors of different classes, of their product in the channel, words and examples
    alike; V the variance over the words. A sum over pairs of classes is the square of a sum less a sum of squares, so
    that the C^2 pairs are never made.
    """
    text = text_CD.double()
    sums_CD = text.index_add(0, labels_M, keys_MD.double())
    counts_C = 1 + torch.bincount(labels_M, minlength=len(text)).double()
    pairs = counts_C.sum() ** 2 - (counts_C**2).sum()
    alike = (sums_CD.sum(dim=0) ** 2 - (sums_CD**2).sum(dim=0)) / pairs.clamp(min=1)
    varied = text.var(dim=0) if len(text) > 1 else torch.zeros_like(alike)
    return weights[1] * varied - weights[0] * alike


class Ape(TipAdapter):
    """Tip-Adapter with chosen channels and weighted values; channels are chosen once, with all examples."""

    name: ClassVar[str] = "ape"
    rules: ClassVar[Mapping[str, Rule]] = {
        **TipAdapter.rules,
        "share": Rule(0, 1, above=True),
        "gamma": Rule(high=100),
    }

    def __init__(
        self,
        alpha: float | None = None,
        beta: float | None = None,
        keep: int | None = None,
        share: float = 0.5,
        gamma: float = 0.2,
        whiten: bool | None = None,
    ) -> None:
        """Settings; alpha, beta, keep and whiten as `TipAdapter`.

        Args:
            share: of the channels that is kept, above 0 up to 1. gamma: how much more surprising examples count, 0 not.

        Raises:
            ModelError: out of range.
        """
        super().__init__(alpha, beta, keep, whiten, share=share, gamma=gamma)
        self.share, self.gamma = share, gamma

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "share": self.share, "gamma": self.gamma}

    def _prepare(self) -> None:
        order = criterion(self.keys, self.labels, self.text).argsort(descending=True, stable=True)
        self.channels = order[: max(1, round(self.share * len(order)))].sort().values
        self._value()

    def _value(self) -> None:
        """exp(gamma * KL(label || softmax of the cosines with words)), in bits; a label's KL is -log2 of its share."""
        p = (self._compared(self.keys) @ self._compared(self.text).mT).softmax(dim=-1)
        self.values = p.gather(1, self.labels[:, None])[:, 0] ** (-self.gamma / math.log(2))

    def _compared(self, rows: torch.Tensor) -> torch.Tensor:
        return F.normalize(rows[:, self.channels], dim=-1)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {**super()._tensors(), "channels": self.channels}

    def _restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.channels = tensors["channels"]
        super()._restore(tensors)
