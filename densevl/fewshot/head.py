"""`Head`: the contract of few-shot heads, and the one rule by which classes with and without examples compete.

A head judges the classes it has examples of. How likely it is to be any of these is left to the words, for each
feature: of an absent class, or of background, there is no evidence but words, and a head that knows only some classes
finds every feature to be one of them. So classes without an example keep their text logits, and their text
probabilities too; with examples of all classes the rule changes nothing, because a softmax does not see it.
Shape letters: N samples, C classes, D width of features.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch.nn import functional as F

from densevl.errors import LabelError, ModelError
from densevl.fewshot.settings import Rule, require


@dataclass(frozen=True, eq=False)
class Samples:
    """Checked examples: unit features (N, D) float32, labels (N,) int64 and weights (N,) float32 above 0."""

    features: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def check(cls, features_ND: Any, labels_N: Any, weights_N: Any, classes: int) -> Samples:
        """Check examples and make rows unit.

        Raises:
            ModelError: features of another shape, not finite or zero, or impossible weights.
            LabelError: labels that do not fit.
        """
        features = torch.as_tensor(features_ND)
        labels = torch.as_tensor(labels_N, device=features.device)
        if features.ndim != 2 or not features.is_floating_point():
            raise ModelError(f"features are {features.dtype} {tuple(features.shape)}: they are float (N, D)")
        if labels.shape != features.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
            raise LabelError(f"labels are {labels.dtype} {tuple(labels.shape)}: integers, one for each feature")
        if not len(labels):
            raise LabelError("no examples: give at least one")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise LabelError(f"labels span {low} to {high}: {classes} classes allow 0 to {classes - 1}")
        norms = features.float().norm(dim=1)
        if not (torch.isfinite(norms) & (norms > 0)).all():
            raise ModelError("features hold zeros or numbers that are not finite; leave those examples out")
        weights = torch.ones_like(norms)
        if weights_N is not None:
            weights = torch.as_tensor(weights_N, device=features.device).to(norms)
            if weights.shape != labels.shape or not (torch.isfinite(weights) & (weights > 0)).all():
                raise ModelError(f"weights {tuple(weights.shape)}: a finite number above 0 for each feature")
        return cls(features.float() / norms[:, None], labels.long(), weights)


class Head(ABC):
    """A classifier of features that knows words and examples.

    Attributes:
        name: of the head. adds: whether `partial_fit` works. rules: what each setting may be. parts: keywords of the
            constructor that are no settings.
        text: (C, D) rows of the words, as given. scale: multiplies their cosines. seen: (C,) bool, which classes have
            examples. found: numbers that fitting chose, ready for JSON.
    """

    name: ClassVar[str]
    adds: ClassVar[bool] = False
    rules: ClassVar[Mapping[str, Rule]] = {}
    parts: ClassVar[tuple[str, ...]] = ()
    text: torch.Tensor
    seen: torch.Tensor
    scale: float

    def __init__(self, **settings: Any) -> None:
        require(settings, self.rules)
        self.found: dict[str, float] = {}

    def fit(
        self,
        features_ND: Any,
        labels_N: Any,
        text_CD: torch.Tensor,
        *,
        scale: float = 100.0,
        weights: Any = None,
        strings: Sequence[Sequence[str]] | None = None,
    ) -> Self:
        """Learn from examples; what was learned before is forgotten.

        Args:
            features_ND: float (N, D), any length; rows are made unit. labels_N: integers (N,), 0 to C - 1.
            text_CD: (C, D) unit rows of the words. A class without an example keeps its text logit.
            scale: what text cosines are multiplied by (the model's logit scale). weights: (N,) above 0, None is 1.
            strings: the words that each row of `text_CD` is of, which head "prompt" reads anew; others do not ask.

        Raises:
            LabelError: labels that do not fit.
            ModelError: features, text, scale or weights that are unusable.
        """
        text = torch.as_tensor(text_CD).float()
        if text.ndim != 2 or not len(text) or not torch.isfinite(text).all():
            raise ModelError(f"text is {tuple(text.shape)}: finite rows (C, D), one for each class")
        if not 0 < scale < math.inf:
            raise ModelError(f"scale is {scale}: it is above 0, and finite")
        samples = Samples.check(features_ND, labels_N, weights, len(text))
        self.text, self.scale, self.found = text.to(samples.features.device), float(scale), {}
        self._check_width(samples.features)
        self.seen = torch.bincount(samples.labels, minlength=len(text)) > 0
        self._fit(samples)
        return self

    def partial_fit(self, features_ND: Any, labels_N: Any, *, weights: Any = None) -> Self:
        """Learn from more examples of the same classes, arguments as `fit`.

        Raises:
            ModelError: nothing fitted yet, or a head that learns everything at once.
            LabelError: as `fit`.
        """
        self._fitted()
        self._require_adding()
        samples = Samples.check(features_ND, labels_N, weights, len(self.text))
        self._check_width(samples.features)
        self.seen = self.seen | (torch.bincount(samples.labels, minlength=len(self.text)) > 0)
        self._add(samples)
        return self

    def retext(
        self, text_CD: torch.Tensor, moved: Sequence[int], *, strings: Sequence[Sequence[str]] | None = None
    ) -> Self:
        """Know other classes from now on, with the examples there are; more are given to `partial_fit`.

        Args:
            text_CD: (C, D) unit rows of the words of all classes. moved: the new number of each old class, -1 for one
                that is left out, which only a class without examples can be. strings: as `fit`.

        Raises:
            ModelError: nothing fitted yet, a head that learns everything at once, rows of another width, or numbers
                that do not fit.
        """
        self._fitted()
        self._require_adding()
        text, numbers = torch.as_tensor(text_CD).to(self.text), torch.as_tensor(moved, device=self.text.device)
        kept = numbers[numbers >= 0]
        if text.ndim != 2 or text.shape[1] != self.text.shape[1] or not torch.isfinite(text).all():
            raise ModelError(f"text is {tuple(text.shape)}: finite rows (C, {self.text.shape[1]}), one for each class")
        if len(numbers) != len(self.text) or len(kept.unique()) < len(kept) or int(kept.max()) >= len(text):
            raise ModelError(f"numbers {numbers.tolist()} of {len(self.text)} classes among {len(text)}: each its own")
        if bool(self.seen[numbers < 0].any()):
            raise ModelError("a class with examples cannot be left out")
        seen = torch.zeros(len(text), dtype=torch.bool, device=text.device)
        seen[numbers[self.seen]] = True
        self.text, self.seen = text, seen
        self._renumber(numbers)
        return self

    def logits(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Logits of all classes, (..., C) float32; a softmax over them gives probabilities.

        Args:
            features_ND: (..., D), any length.

        Raises:
            ModelError: nothing fitted yet, or features of another width.
        """
        self._fitted()
        self._check_width(features_ND)
        unit = self._embed(features_ND.reshape(-1, features_ND.shape[-1]).to(self.text))
        words = self.scale * unit @ self.text.mT
        settled = settle(self._judge(unit, words), words, self.seen)
        return settled.reshape(*features_ND.shape[:-1], len(self.text))

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that `restore` needs: tensors, and facts of JSON types."""
        self._fitted()
        facts = {"head": self.name, "settings": self.settings(), "scale": self.scale, "found": self.found}
        return {"text": self.text, "seen": self.seen, **self._tensors()}, facts

    @classmethod
    def restore(cls, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> Self:
        """The head whose `state()` this is."""
        head = cls._empty(tensors, facts["settings"])
        head.text, head.seen = tensors["text"], tensors["seen"]
        head.scale, head.found = float(facts["scale"]), dict(facts["found"])
        head._restore(tensors)
        return head

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's keywords, JSON types."""

    @abstractmethod
    def _fit(self, samples: Samples) -> None: ...

    @abstractmethod
    def _judge(self, unit_ND: torch.Tensor, words_NC: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of classes with examples; others are not looked at."""

    @abstractmethod
    def _tensors(self) -> dict[str, torch.Tensor]: ...

    @abstractmethod
    def _restore(self, tensors: Mapping[str, torch.Tensor]) -> None: ...

    @classmethod
    def _empty(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Self:
        return cls(**settings)

    def _add(self, samples: Samples) -> None:
        raise NotImplementedError

    def _renumber(self, moved_C: torch.Tensor) -> None:
        """Classes have other numbers, and there is other text; of a class with -1 there are no examples."""
        raise NotImplementedError

    def _require_adding(self) -> None:
        if not self.adds:
            raise ModelError(f"head '{self.name}' learns from all examples at once: call fit with all of them")

    def _embed(self, features_ND: torch.Tensor) -> torch.Tensor:
        return F.normalize(features_ND, dim=-1)

    def _width(self) -> int:
        return self.text.shape[1]

    def _check_width(self, features: torch.Tensor) -> None:
        if features.shape[-1] != self._width():
            raise ModelError(
                f"features are {features.shape[-1]} wide, this head wants {self._width()}; encode with the same model"
            )

    def _fitted(self) -> None:
        if not hasattr(self, "text"):
            raise ModelError(f"head '{self.name}' has no examples yet: call fit first")


def settle(judged_NC: torch.Tensor, words_NC: torch.Tensor, seen_C: torch.Tensor) -> torch.Tensor:
    """Text logits, and for the classes with examples the judged ones, moved to where their text logits sum up to."""
    shift = _total(words_NC, seen_C) - _total(judged_NC, seen_C)
    return torch.where(seen_C, judged_NC + shift, words_NC)


def _total(logits_NC: torch.Tensor, seen_C: torch.Tensor) -> torch.Tensor:
    return logits_NC[..., seen_C].logsumexp(dim=-1, keepdim=True)
