"""Tip-Adapter (Zhang et al., ECCV 2022): examples as keys of a cache, added to the text logits by closeness.

    logit_c = scale f.w_c + alpha * mean over examples i of c of v_i exp(-beta (1 - f.k_i))

f and k are compared as they are, or whitened; see `whitening`. The mean in place of the paper's sum lets classes have
different numbers of examples; alpha is the paper's times K. Shape letters: N samples, M keys, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from densevl.fewshot.choosing import best, equal_say, spread
from densevl.fewshot.head import Head, Samples
from densevl.fewshot.heads.whitening import WHITEN, Whitening, parts, placed
from densevl.fewshot.settings import Rule
from densevl.proposals.clusters import kmeans

BETA = 5.5  # where examples stand alone and none can be chosen
BETAS = (1.0, 2.0, 3.5, 5.5, 8.0, 12.0, 20.0)
STEPS = torch.cat([torch.zeros(1), torch.logspace(-2, 1.5, 22)]).tolist()  # alpha, as a multiple of an equal say
KERNELS_AT_ONCE = 2**24


class TipAdapter(Head):
    """The cache; alpha and beta are chosen by leaving out one example at a time, which needs no second fit."""

    name: ClassVar[str] = "tip"
    adds: ClassVar[bool] = True
    rules: ClassVar[Mapping[str, Rule]] = {
        "alpha": Rule(optional=True),
        "beta": Rule(above=True, optional=True),
        "keep": Rule(1, whole=True, optional=True),
        **WHITEN,
    }
    whitening: Whitening | None = None

    def __init__(
        self,
        alpha: float | None = None,
        beta: float | None = None,
        keep: int | None = None,
        whiten: bool | None = None,
        **further: Any,
    ) -> None:
        """Settings.

        Args:
            alpha: weight of the examples; None chooses. beta: sharpness, above 0; None chooses.
            keep: at most so many keys a class, centres of k-means; None keeps all.
            whiten: features are compared where examples of a class differ equally in all directions; alpha and beta are
                then chosen by folds. None chooses, and compares them as they are where no class has two examples.
            further: settings of subclasses.

        Raises:
            ModelError: out of range.
        """
        super().__init__(alpha=alpha, beta=beta, keep=keep, whiten=whiten, **further)
        self.alpha, self.beta, self.keep, self.whiten = alpha, beta, keep, whiten

    def settings(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "beta": self.beta, "keep": self.keep, "whiten": self.whiten}

    def _fit(self, samples: Samples) -> None:
        self.keys, self.labels, self.weights = samples.features, samples.labels, samples.weights
        self._prepare()
        self._choose()
        self._condense()

    def _add(self, samples: Samples) -> None:
        """Alpha and beta stay as they were chosen where keys are means, else they are chosen anew."""
        self.keys = torch.cat([self.keys, samples.features])
        self.labels = torch.cat([self.labels, samples.labels])
        self.weights = torch.cat([self.weights, samples.weights])
        self._prepare()
        if self.keep is None:
            self._choose()
        self._condense()

    def _renumber(self, moved_C: torch.Tensor) -> None:
        self.labels = moved_C[self.labels]
        self._prepare()

    def _judge(self, unit_ND: torch.Tensor, words_NC: torch.Tensor) -> torch.Tensor:
        return words_NC + self.found["alpha"] * self._means(unit_ND, self.found["beta"])

    def _prepare(self) -> None:
        """Before new keys are compared; `Ape` chooses channels here."""
        self._value()

    def _value(self) -> None:
        """Every example counts once; in `Ape` surprising ones count more."""
        self.values = torch.ones_like(self.weights)

    def _compared(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def _placed(self, rows: torch.Tensor) -> torch.Tensor:
        return placed(self.whitening, self._compared(rows))

    def _keys(self) -> torch.Tensor:
        return self._placed(self.keys)

    def _means(self, unit_ND: torch.Tensor, beta: float, own: torch.Tensor | None = None) -> torch.Tensor:
        """The mean kernel of each class (N, C), 0 for one without examples.

        Args:
            own: (N,) which key each feature is itself; it is left out.
        """
        sums, counts = [], F.one_hot(self.labels, len(self.text)).to(unit_ND) * self.weights[:, None]
        values_MC = counts * self.values[:, None]
        keys = self._keys()
        step = max(1, KERNELS_AT_ONCE // len(keys))
        for at in range(0, len(unit_ND), step):
            kernel_NM = torch.exp(-beta * (1 - self._placed(unit_ND[at : at + step]) @ keys.mT))
            if own is not None:
                kernel_NM.scatter_(1, own[at : at + step, None], 0)
            sums.append(kernel_NM @ values_MC)
        totals = counts.sum(dim=0).expand(len(unit_ND), -1).clone()
        if own is not None:
            totals -= counts[own]
        mean = torch.cat(sums) / totals.clamp(min=1e-6) if sums else totals
        return torch.where(totals > 1e-6, mean, 0)

    def _choose(self) -> None:
        """The metric by folds; alpha and beta by leaving one out, or by the metric's folds. Where no class has two
        examples, both sides have an equal say."""
        self.whitening = None
        some, own = self._judged()
        words = self.scale * self.keys[some] @ self.text.mT
        labels = self.labels[some]
        chosen, whiten = None, bool(self._whitens)
        if own is not None:
            if self._whitens is not False:
                whiten, chosen = self._by_folds(some, words, labels)
            if not whiten:
                found = self._candidates(lambda beta: self._means(self.keys[some], beta, own), words, labels)
                chosen = best(found, words, self.seen, labels)
        if whiten:
            compared = self._compared(self.keys)
            self.whitening = Whitening.of(Samples(compared, self.labels, self.weights))
        self.found["whitened"] = float(self.whitening is not None)
        if chosen is None:
            beta = BETA if self.beta is None else self.beta
            alpha = equal_say(words, self._means(self.keys[some], beta), labels, self.seen)
            chosen = (alpha if self.alpha is None else self.alpha, beta)
        self.found |= {"alpha": chosen[0], "beta": chosen[1]}

    @property
    def _whitens(self) -> bool | None:
        return self.whiten

    def _candidates(
        self, means: Callable[[float], torch.Tensor], words_NC: torch.Tensor, labels_N: torch.Tensor
    ) -> Iterator[tuple[tuple[float, float], torch.Tensor]]:
        for beta in BETAS if self.beta is None else (self.beta,):
            means_NC = means(beta)
            for alpha in self._alphas(words_NC, means_NC, labels_N):
                yield (alpha, beta), words_NC + alpha * means_NC

    def _by_folds(
        self, some: torch.Tensor, words_NC: torch.Tensor, labels_N: torch.Tensor
    ) -> tuple[bool, tuple[float, float] | None]:
        """Whether to whiten; and alpha and beta that are best then."""

        def candidates() -> Iterator[tuple[tuple[bool, tuple[float, float]], torch.Tensor]]:
            for whiten in (True,) if self.whiten else (False, True):
                for setting, logits in self._candidates(self._folded(some, whiten=whiten), words_NC, labels_N):
                    yield (whiten, setting), logits

        found = best(candidates(), words_NC, self.seen, labels_N)
        return (bool(self.whiten), None) if found is None else found

    def _folded(self, some: torch.Tensor, *, whiten: bool) -> Callable[[float], torch.Tensor]:
        """The mean kernel of each class (N, C) by beta, of some examples that are judged by the other folds."""
        compared = Samples(self._compared(self.keys), self.labels, self.weights)
        place = torch.full((len(compared),), -1, device=some.device)
        place[some] = torch.arange(len(some), device=some.device)
        folded = list(parts(compared, place >= 0, whiten=whiten))

        def means(beta: float) -> torch.Tensor:
            found = self.keys.new_zeros(len(some), len(self.text))
            for part in folded:
                query, keys = (placed(part.whitening, compared.features[index]) for index in (part.judged, part.rest))
                counts = F.one_hot(self.labels[part.rest], len(self.text)).to(query) * self.weights[part.rest, None]
                kernel = torch.exp(-beta * (1 - query @ keys.mT)) @ (counts * self.values[part.rest, None])
                found[place[part.judged]] = kernel / counts.sum(dim=0).clamp(min=1e-6)
            return found

        return means

    def _left_out(self, some: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
        """The mean kernel of each class (N, C) as chosen, of some examples that are judged by others."""
        beta = self.found["beta"]
        whitened = self.whitening is not None and own is not None
        return self._folded(some, whiten=True)(beta) if whitened else self._means(self.keys[some], beta, own)

    def _judged(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Which keys settings are chosen on; and the same again, each to be left out, or None where all stand alone."""
        counts = torch.bincount(self.labels, minlength=len(self.text))
        several = (counts[self.labels] > 1).nonzero().flatten()
        if len(several):
            several = several[spread(len(several)).to(several.device)]
            return several, several
        return spread(len(self.keys)).to(self.keys.device), None

    def _alphas(self, words_NC: torch.Tensor, means_NC: torch.Tensor, labels_N: torch.Tensor) -> list[float]:
        if self.alpha is not None:
            return [self.alpha]
        unit = equal_say(words_NC, means_NC, labels_N, self.seen)
        return [unit * step for step in STEPS]

    def _condense(self) -> None:
        """Keys of a class with more than `keep` of them become unit centres, their weights summed."""
        if self.keep is None:
            return
        parts = []
        for index in self.seen.nonzero().flatten().tolist():
            keys, weights = self.keys[self.labels == index], self.weights[self.labels == index]
            if len(keys) > self.keep:
                cluster = kmeans(keys.cpu(), self.keep).to(keys.device)
                member = F.one_hot(cluster, int(cluster.max()) + 1).to(weights) * weights[:, None]
                member = member[:, member.any(dim=0)]
                keys, weights = F.normalize(member.mT @ keys, dim=-1), member.sum(dim=0)
            parts.append((keys, torch.full((len(keys),), index, device=keys.device), weights))
        self.keys, self.labels, self.weights = (torch.cat(list(column)) for column in zip(*parts, strict=True))
        self._value()

    def _tensors(self) -> dict[str, torch.Tensor]:
        own = {} if self.whitening is None else self.whitening.tensors()
        return {"keys": self.keys, "labels": self.labels, "weights": self.weights, **own}

    def _restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.keys, self.labels, self.weights = tensors["keys"], tensors["labels"], tensors["weights"]
        self.whitening = Whitening.read(dict(tensors))
        self._value()
