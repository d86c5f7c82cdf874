"""Classes by example alone: how like an image is to the exemplars of each class. Shape letters: N samples, M exemplars.

The kernel is Tip-Adapter's (Zhang et al., ECCV 2022), exp(-sharpness (1 - cos)), averaged over a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from densevl.errors import ModelError
from densevl.fewshot.head import settle
from densevl.fewshot.heads.nearest import Nearest
from densevl.fewshot.heads.whitening import placed
from densevl.fewshot.settings import Rule

SHARPNESS = 20.0


class Exemplars(Nearest):
    """Logits are logs of the mean kernel of each class's exemplars, 0 for a copy of all of them.

    It judges every exemplar by the others too, so that confidence can be calibrated without further images.
    """

    name: ClassVar[str] = "exemplars"
    rules: ClassVar[Mapping[str, Rule]] = {"sharpness": Rule(above=True), **Nearest.rules}

    def __init__(self, sharpness: float = SHARPNESS, whiten: bool | None = None) -> None:
        """Settings. Args: sharpness: above 0; the larger, the more only the nearest exemplar counts. whiten: as
        `Nearest`.

        Raises:
            OptionError: a sharpness that is not above 0.
        """
        super().__init__(whiten, sharpness=sharpness)
        self.sharpness = float(sharpness)

    def settings(self) -> dict[str, Any]:
        return {"sharpness": self.sharpness, **super().settings()}

    def left_out(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (M, C) of the exemplars, each judged by the others only, and their classes (M,).

        Raises:
            ModelError: a class has but one exemplar, which nothing is left to judge by.
        """
        if not (torch.bincount(self.labels, minlength=len(self.text))[self.seen] > 1).all():
            raise ModelError("calibration needs two exemplars of every class, or held-out images")
        words = self.scale * self.rows @ self.text.mT
        if self.whitening is not None:
            logits, labels = self.left_out_by_folds()
            return settle(logits, words, self.seen), labels
        return settle(self._kernels(self.rows, self.rows, self.labels, leave_out=True), words, self.seen), self.labels

    def closeness(self, unit_ND: torch.Tensor) -> torch.Tensor:
        """Log of the mean kernel of each class, (N, C); -inf for classes without exemplars."""
        return self._compare(placed(self.whitening, unit_ND), placed(self.whitening, self.rows), self.labels)

    def _compare(self, unit_ND: torch.Tensor, rows_MD: torch.Tensor, labels_M: torch.Tensor) -> torch.Tensor:
        return self._kernels(unit_ND, rows_MD, labels_M)

    def _kernels(
        self, unit_ND: torch.Tensor, rows_MD: torch.Tensor, labels_M: torch.Tensor, *, leave_out: bool = False
    ) -> torch.Tensor:
        """As `closeness`, by some exemplars.

        Args:
            leave_out: the features are the exemplars themselves, in order, and each is compared with the others only.
        """
        kernel_NM = self.sharpness * (unit_ND @ rows_MD.mT - 1)
        if leave_out:
            kernel_NM.fill_diagonal_(-torch.inf)
        is_own = labels_M[None] == torch.arange(len(self.text), device=labels_M.device)[:, None]
        counts_NC = is_own.sum(dim=1).expand(len(unit_ND), -1).clone()
        if leave_out:
            counts_NC[torch.arange(len(unit_ND)), labels_M] -= 1
        by_class = torch.where(is_own[None], kernel_NM[:, None], -torch.inf)
        return by_class.logsumexp(dim=2) - counts_NC.clamp(min=1).log()
