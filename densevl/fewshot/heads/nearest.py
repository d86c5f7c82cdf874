"""The nearest exemplar: a class is as likely as its most similar example. Shape letters: N samples, M exemplars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from densevl.fewshot.choosing import spread
from densevl.fewshot.head import Head, Samples
from densevl.fewshot.heads.whitening import WHITEN, Part, Whitening, parts, placed, prefers
from densevl.fewshot.settings import Rule
from densevl.kernels import nearest

JUDGED = 256  # examples that the metric is chosen on


class Nearest(Head):
    """Logits scale * largest cosine with an example of the class, whitened or not."""

    name: ClassVar[str] = "nearest"
    adds: ClassVar[bool] = True
    rules: ClassVar[Mapping[str, Rule]] = WHITEN
    whitening: Whitening | None = None

    def __init__(self, whiten: bool | None = None, **further: Any) -> None:
        """Settings.

        Args:
            whiten: features are compared where examples of a class differ equally in all directions; None chooses by
                folds, and compares them as they are where no class has two examples. further: settings of subclasses.

        Raises:
            OptionError: out of range.
        """
        super().__init__(whiten=whiten, **further)
        self.whiten = whiten

    def settings(self) -> dict[str, Any]:
        return {"whiten": self.whiten}

    def distance(self, features_ND: torch.Tensor) -> torch.Tensor:
        """1 - cosine to the nearest example of any class, 0..2, not whitened: (N,)."""
        self._check_width(features_ND)
        return 1 - nearest(self._embed(features_ND.to(self.rows)), self.rows)[0]

    def _fit(self, samples: Samples) -> None:
        self.rows, self.labels, self.weights = samples.features, samples.labels, samples.weights
        self._choose()

    def _add(self, samples: Samples) -> None:
        self.rows = torch.cat([self.rows, samples.features])
        self.labels = torch.cat([self.labels, samples.labels])
        self.weights = torch.cat([self.weights, samples.weights])
        self._choose()

    def _renumber(self, moved_C: torch.Tensor) -> None:
        self.labels = moved_C[self.labels]

    def _choose(self) -> None:
        """The metric, by folds; then it is fitted on all examples."""
        samples, some = self._samples(), torch.zeros(len(self.rows), dtype=torch.bool, device=self.rows.device)
        some[spread(len(samples), JUDGED).to(some.device)] = True
        words = self.scale * self.rows @ self.text.mT
        chosen = prefers(self.whiten, samples, some, self._judge_part, words, self.seen)
        self.whitening = Whitening.of(samples) if chosen else None
        self.found["whitened"] = float(self.whitening is not None)

    def _samples(self) -> Samples:
        return Samples(self.rows, self.labels, self.weights)

    def _judge_part(self, part: Part) -> torch.Tensor:
        query, rows = (placed(part.whitening, self.rows[index]) for index in (part.judged, part.rest))
        return self._compare(query, rows, self.labels[part.rest])

    def _compare(self, unit_ND: torch.Tensor, rows_MD: torch.Tensor, labels_M: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) by some exemplars, both where they are compared; those of classes without are not looked at."""
        logits = unit_ND.new_zeros(len(unit_ND), len(self.text))
        for index in labels_M.unique().tolist():
            logits[:, index] = self.scale * nearest(unit_ND, rows_MD[labels_M == index])[0]
        return logits

    def _judge(self, unit_ND: torch.Tensor, words_NC: torch.Tensor) -> torch.Tensor:
        return self._compare(placed(self.whitening, unit_ND), placed(self.whitening, self.rows), self.labels)

    def left_out_by_folds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (M, C) of the exemplars, each by a metric and by others that have not seen it, and classes (M,)."""
        every = torch.ones(len(self.rows), dtype=torch.bool, device=self.rows.device)
        found = list(parts(self._samples(), every, whiten=True))
        order = torch.cat([part.judged for part in found])
        return torch.cat([self._judge_part(part) for part in found])[order.argsort()], self.labels[order.sort().values]

    def _tensors(self) -> dict[str, torch.Tensor]:
        own = {} if self.whitening is None else self.whitening.tensors()
        return {"rows": self.rows, "labels": self.labels, "weights": self.weights, **own}

    def _restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.rows, self.labels = tensors["rows"], tensors["labels"]
        self.weights = tensors.get("weights", torch.ones_like(self.rows[:, 0]))
        self.whitening = Whitening.read(dict(tensors))
