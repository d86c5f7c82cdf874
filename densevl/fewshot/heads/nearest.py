"""The nearest exemplar: a class is as likely as its most similar example. Shape letters: N samples, M exemplars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from densevl.fewshot.head import Head, Samples
from densevl.kernels import nearest


class Nearest(Head):
    """Logits scale * largest cosine with an example of the class. It needs no setting, and no two examples a class."""

    name: ClassVar[str] = "nearest"
    adds: ClassVar[bool] = True

    def settings(self) -> dict[str, Any]:
        return {}

    def distance(self, features_ND: torch.Tensor) -> torch.Tensor:
        """1 - cosine to the nearest example of any class, 0..2: (N,)."""
        self._check_width(features_ND)
        return 1 - nearest(self._embed(features_ND.to(self.rows)), self.rows)[0]

    def _fit(self, samples: Samples) -> None:
        self.rows, self.labels = samples.features, samples.labels

    def _add(self, samples: Samples) -> None:
        self.rows = torch.cat([self.rows, samples.features])
        self.labels = torch.cat([self.labels, samples.labels])

    def _renumber(self, moved_C: torch.Tensor) -> None:
        self.labels = moved_C[self.labels]

    def _judge(self, unit_ND: torch.Tensor, words_NC: torch.Tensor) -> torch.Tensor:
        judged = words_NC.clone()
        for index in self.seen.nonzero().flatten().tolist():
            judged[:, index] = self.scale * nearest(unit_ND, self.rows[self.labels == index])[0]
        return judged

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {"rows": self.rows, "labels": self.labels}

    def _restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.rows, self.labels = tensors["rows"], tensors["labels"]
