"""TIP-X (SuS-X; Udandarao et al., ICCV 2023): Tip-Adapter, and how alike examples are by what words say of them.

    logit_c = scale f.w_c + alpha mean_i exp(-beta (1 - f.k_i)) + gamma mean_i psi(-KL(pi(f) | pi(k_i))),  i of class c

The signature pi of a feature is the softmax of its cosines with all words, at temperature 0.5. Psi is linear, so that
the last mean is a product with the mean log signature of each class: nothing as large as features x examples is built
for it. It leads from the range of -KL between examples to that of their cosines; the authors take the range over the
test images instead, which makes the label of one depend on the others.

CapS (CapS-Adapter; Wang et al., ACM MM 2024): captions of the examples stand in for a share delta of the keys.
Shape letters: N samples, M keys, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch.nn import functional as F

from densevl.errors import ModelError
from densevl.fewshot.choosing import best, equal_say, spread
from densevl.fewshot.head import Samples
from densevl.fewshot.heads.tip import STEPS, TipAdapter
from densevl.fewshot.settings import Rule

TEMPERATURE = 0.5  # of signatures, the paper's
DELTAS = tuple(tenth / 10 for tenth in range(11))


class TipX(TipAdapter):
    """Tip-Adapter with the affinity of signatures; gamma and delta 0 are Tip-Adapter.

    Alpha and beta are chosen as there; then delta, if there are captions; then gamma.
    """

    name: ClassVar[str] = "tipx"
    rules: ClassVar[Mapping[str, Rule]] = {
        **TipAdapter.rules,
        "gamma": Rule(optional=True),
        "delta": Rule(0, 1, optional=True),
    }
    captions: torch.Tensor | None = None

    def __init__(
        self,
        alpha: float | None = None,
        beta: float | None = None,
        keep: int | None = None,
        gamma: float | None = None,
        delta: float | None = None,
        whiten: bool | None = None,
    ) -> None:
        """Settings; alpha, beta, keep and whiten as `TipAdapter`.

        Args:
            gamma: weight of signatures, 0 or more; None chooses. delta: share of captions, 0..1; None chooses.

        Raises:
            OptionError: out of range.
        """
        super().__init__(alpha, beta, keep, whiten, gamma=gamma, delta=delta)
        self.gamma, self.delta = gamma, delta

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "gamma": self.gamma, "delta": self.delta}

    def caption(self, rows_MD: Any) -> Self:
        """Take captions of all examples, in their order; what is chosen is chosen anew.

        Args:
            rows_MD: text embeddings, any length.

        Raises:
            ModelError: nothing fitted, rows that do not fit, or keys that are means of examples.
        """
        self._fitted()
        rows = torch.as_tensor(rows_MD).to(self.keys)
        if self.keep is not None:
            raise ModelError("keys that are means (keep) have no captions: leave one of the two out")
        if self.whiten:
            raise ModelError("whiten=true compares images, and captions stand in for them: leave one of the two out")
        if rows.shape != self.keys.shape or not (torch.isfinite(rows).all() and rows.any(dim=-1).all()):
            raise ModelError(f"captions are {tuple(rows.shape)}: a finite row for each key {tuple(self.keys.shape)}")
        self.captions = F.normalize(rows, dim=-1)
        self._choose()
        return self

    def _fit(self, samples: Samples) -> None:
        self.captions = None
        super()._fit(samples)

    def _add(self, samples: Samples) -> None:
        if self.captions is not None:
            raise ModelError("these examples have captions: fit all of them anew, with captions")
        super()._add(samples)

    def _renumber(self, moved_C: torch.Tensor) -> None:
        super()._renumber(moved_C)
        self._sign()

    def _judge(self, unit_ND: torch.Tensor, words_NC: torch.Tensor) -> torch.Tensor:
        judged = super()._judge(unit_ND, words_NC)
        gamma = self.found["gamma"] * self.found["slope"]
        return judged + gamma * _signature(words_NC / self.scale).exp() @ self.signs.mT if gamma else judged

    def _keys(self) -> torch.Tensor:
        keys, delta = super()._keys(), self.found.get("delta", 0.0)
        return keys if self.captions is None or not delta else (1 - delta) * keys + delta * self.captions

    @property
    def _whitens(self) -> bool | None:
        return self.whiten if self.captions is None else False  # the scatter of images is not that of captions

    def _choose(self) -> None:
        self.found["delta"] = 0.0
        super()._choose()
        judged, own = self._judged()
        words, labels = self.scale * self.keys[judged] @ self.text.mT, self.labels[judged]
        if self.captions is not None:
            self.found["delta"] = self._chosen_delta(judged, own, words, labels)
        self.found["slope"] = self._slope()
        alike = self._signs_alike(words / self.scale, own)
        means = words + self.found["alpha"] * self._left_out(judged, own)

        def candidates() -> Iterator[tuple[float, torch.Tensor]]:
            unit = equal_say(words, self.found["slope"] * alike, labels, self.seen)
            for gamma in (unit * step for step in STEPS):
                yield gamma, means + gamma * self.found["slope"] * alike

        chosen = self.gamma
        if chosen is None:  # where examples stand alone, the words that made the signatures have had their say
            chosen = best(candidates(), words, self.seen, labels) if own is not None else None
        self.found["gamma"] = chosen or 0.0
        self._sign()

    def _chosen_delta(
        self, judged: torch.Tensor, own: torch.Tensor | None, words: torch.Tensor, labels: torch.Tensor
    ) -> float:
        if self.delta is not None or own is None:
            return self.delta or 0.0

        def candidates() -> Iterator[tuple[float, torch.Tensor]]:
            for delta in DELTAS:
                self.found["delta"] = delta
                means = self._means(self.keys[judged], self.found["beta"], own)
                yield delta, words + self.found["alpha"] * means

        return best(candidates(), words, self.seen, labels) or 0.0

    def _slope(self) -> float:
        """Of psi: the range of cosines between examples over that of -KL between them; 0 where one has none."""
        some = self.keys[spread(len(self.keys)).to(self.keys.device)]
        log_MC = _signature(some @ self.text.mT)
        p_MC = log_MC.exp()
        kl_MM = (p_MC * log_MC).sum(dim=1, keepdim=True) - p_MC @ log_MC.mT
        apart = ~torch.eye(len(some), dtype=torch.bool, device=some.device)
        if len(some) < 2:
            return 0.0
        kl, cosines = kl_MM[apart], (some @ some.mT)[apart]
        span = float(kl.max() - kl.min())
        return float(cosines.max() - cosines.min()) / span if span > 1e-12 else 0.0

    def _sign(self) -> None:
        """The mean log signature of each class (C, C'), 0 for one without examples."""
        log_MC, member_MC = _signature(self.keys @ self.text.mT), self._member()
        self.signs = member_MC.mT @ log_MC / member_MC.sum(dim=0).clamp(min=1e-6)[:, None]

    def _member(self) -> torch.Tensor:
        return F.one_hot(self.labels, len(self.text)).to(self.keys) * self.weights[:, None]

    def _signs_alike(self, cosines_NC: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
        """The mean of pi . log pi_i over the examples of each class (N, C); with `own`, key own[n] is left out."""
        p_NC, log_MC, member_MC = _signature(cosines_NC).exp(), _signature(self.keys @ self.text.mT), self._member()
        sums, totals = p_NC @ (member_MC.mT @ log_MC).mT, member_MC.sum(dim=0).expand(len(p_NC), -1)
        if own is not None:
            sums = sums - member_MC[own] * (p_NC * log_MC[own]).sum(dim=1, keepdim=True)
            totals = totals - member_MC[own]
        return torch.where(totals > 1e-6, sums / totals.clamp(min=1e-6), 0)

    def _condense(self) -> None:
        super()._condense()
        self._sign()

    def _tensors(self) -> dict[str, torch.Tensor]:
        own = {} if self.captions is None else {"captions": self.captions}
        return {**super()._tensors(), **own}

    def _restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super()._restore(tensors)
        self.captions = tensors.get("captions")
        self._sign()


def _signature(cosines_NC: torch.Tensor) -> torch.Tensor:
    """Log of the signatures (N, C)."""
    return (cosines_NC / TEMPERATURE).log_softmax(dim=-1)
