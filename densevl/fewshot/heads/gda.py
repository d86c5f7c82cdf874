"""GDA (Wang et al., ICLR 2024): Gaussian classes of one covariance beside the text logits, in closed form.

    P = D (S + ridge I)^-1,   ridge = tr(S) / (N - 1),   logit_c = scale f.w_c + alpha (f.P mu_c - mu_c.P mu_c / 2)

S is the scatter within classes. The paper's ridge is many times the mean variance where examples are few, so a tenth of
that variance stands in for it where left-out examples are more probable then. Classes are taken to be equally frequent.
Shape letters: N samples, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from densevl.errors import ModelError
from densevl.fewshot.choosing import best, equal_say, spread
from densevl.fewshot.head import Head, Samples
from densevl.fewshot.heads.moments import NONE, Moments
from densevl.fewshot.settings import Rule

RIDGES = (None, 0.1)
"""That are tried: the paper's, and a share of the mean variance."""
ALPHAS = (0.0, *torch.logspace(-4, 2, 37).tolist())


class Gda(Head):
    """Streamed: nothing is kept of examples but their moments. Alpha is chosen by leaving one out, exactly."""

    name: ClassVar[str] = "gda"
    adds: ClassVar[bool] = True
    rules: ClassVar[Mapping[str, Rule]] = {
        "alpha": Rule(optional=True),
        "floor": Rule(),
        "ridge": Rule(above=True, optional=True),
    }
    moments: Moments

    def __init__(self, alpha: float | None = None, floor: float = 0.0, ridge: float | None = None) -> None:
        """Settings.

        Args:
            alpha: weight of the examples, 0 or more; None chooses it by leaving out each of the examples (of more than
                1024, evenly spread ones), anew with every `partial_fit`.
            floor: further ridge, as a share of the mean variance. The paper's ridge fades as examples grow many; where
                they are not independent, as places of one image, it should not.
            ridge: in place of the paper's, as a share of the mean variance, above 0. None takes the paper's, or a tenth
                where that is better by the examples on which alpha is chosen.

        Raises:
            ModelError: out of range.
        """
        super().__init__(alpha=alpha, floor=floor, ridge=ridge)
        self.alpha, self.floor, self.ridge = alpha, floor, ridge

    def settings(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "floor": self.floor, "ridge": self.ridge}

    def remove(self, features_ND: Any, labels_N: Any, *, weights: Any = None) -> Self:
        """Forget examples that were learned, arguments as `fit`; alpha stays.

        Raises:
            ModelError: nothing fitted yet, or more than was learned.
            LabelError: as `fit`.
        """
        self._fitted()
        gone = Samples.check(features_ND, labels_N, weights, len(self.text))
        self._check_width(gone.features)
        self._take(self.moments - self._moments(gone))
        return self

    def merge(self, other: Gda) -> Self:
        """Learn what another head for the same words has learned; alpha stays.

        Raises:
            ModelError: it has other words, or has learned nothing.
        """
        self._fitted()
        other._fitted()
        if self.text.shape != other.text.shape or not torch.equal(self.text, other.text.to(self.text)):
            raise ModelError("heads for different words cannot be merged; fit both with the same classes in one order")
        self._take(self.moments + other.moments)
        return self

    def choose(self, features_ND: Any, labels_N: Any, *, weights: Any = None) -> float:
        """Choose alpha by some of the examples learned, each judged without itself; returns it.

        The result is that of fitting anew without each in turn, at the cost of one eigendecomposition. Examples that
        are the only one of their class say nothing; where all are, both sides get an equal say.

        Raises:
            ModelError: nothing fitted yet.
            LabelError: as `fit`.
        """
        self._fitted()
        self._choose(Samples.check(features_ND, labels_N, weights, len(self.text)))
        return self.found["alpha"]

    def _fit(self, samples: Samples) -> None:
        self._take(self._moments(samples))
        self._choose(samples)

    def _add(self, samples: Samples) -> None:
        self._take(self.moments + self._moments(samples))
        self._choose(samples)

    def _renumber(self, moved_C: torch.Tensor) -> None:
        self._take(self.moments.moved(moved_C, len(self.text)))

    def _moments(self, samples: Samples) -> Moments:
        return Moments.of(samples.features, samples.labels, samples.weights, len(self.text))

    def _take(self, moments: Moments) -> None:
        """Solve for the weights P mu_c and biases -mu_c.P mu_c / 2 by Cholesky."""
        self.moments, self.seen = moments, moments.seen
        scatter, means = moments.scatter(), moments.means
        width = len(scatter)
        trace = scatter.trace()
        if not moments.has_spread(trace):  # one example, or copies of it
            self.weight, self.bias = torch.zeros_like(self.text), torch.zeros_like(self.text[:, 0])
            return
        ridge = _ridge(trace, moments.counts.sum(), width, self.floor, self._ridge)
        factor = torch.linalg.cholesky(scatter + ridge * torch.eye(width).to(scatter))
        weight = width * torch.cholesky_solve(means.mT, factor).mT
        self.weight, self.bias = weight.to(self.text), (-(weight * means).sum(dim=1) / 2).to(self.text)

    @property
    def _ridge(self) -> float | None:
        return self.found.get("ridge", self.ridge)

    def _judge(self, unit_ND: torch.Tensor, words_NC: torch.Tensor) -> torch.Tensor:
        return words_NC + self.found["alpha"] * (unit_ND @ self.weight.mT + self.bias)

    def _choose(self, samples: Samples) -> None:
        if self.alpha is not None:
            self.found["alpha"] = self.alpha
            return
        some = spread(len(samples)).to(samples.labels.device)
        samples = Samples(samples.features[some], samples.labels[some], samples.weights[some])
        words = self.scale * samples.features @ self.text.mT
        self.found.pop("ridge", None)
        tried = RIDGES if self.ridge is None else (self.ridge,)
        loose = {ridge: leave_one_out(self.moments, samples, self.floor, ridge) for ridge in tried}
        left = self.moments.counts[samples.labels] - samples.weights > NONE
        for _, usable in loose.values():
            left = left & usable

        def candidates() -> Iterator[tuple[tuple[float | None, float], torch.Tensor]]:
            for ridge, (judged, _) in loose.items():
                for alpha in ALPHAS:
                    yield (ridge, alpha), (words + alpha * judged)[left]

        chosen = best(candidates(), words[left], self.seen, samples.labels[left]) if left.any() else None
        if chosen is not None and chosen[0] is not None:
            self.found["ridge"] = chosen[0]
        self._take(self.moments)
        gain = samples.features @ self.weight.mT + self.bias
        self.found["alpha"] = equal_say(words, gain, samples.labels, self.seen) if chosen is None else chosen[1]

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self.moments, name) for name in ("counts", "sums", "gram")}

    def _restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._take(Moments(tensors["counts"], tensors["sums"], tensors["gram"]))


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """P without one sample, for N samples at once, in the basis where the scatter S is diagonal.

    Without weight w of f in a class of weight n and mean mu, S loses k u u^T with u = f - mu, k = n w / (n - w), and
    the ridge follows tr(S): P = D (A - k u u^T)^-1 with A diagonal, one for each sample (Sherman and Morrison, 1950).
    """

    a_ND: torch.Tensor  # the diagonal of A^-1
    u_ND: torch.Tensor
    factor_N1: torch.Tensor  # k / (1 - k u.A^-1 u)

    def with_one(self, x_ND: torch.Tensor, y_ND: torch.Tensor) -> torch.Tensor:
        """x.P y / D for pairs of rows, (N, 1)."""
        direct = (x_ND * self.a_ND * y_ND).sum(dim=1, keepdim=True)
        return direct + self.factor_N1 * self._along(x_ND) * self._along(y_ND)

    def with_all(self, x_ND: torch.Tensor, m_CD: torch.Tensor) -> torch.Tensor:
        """x.P m / D for each row with all of m, (N, C)."""
        return (x_ND * self.a_ND) @ m_CD.mT + self.factor_N1 * self._along(x_ND) * ((self.u_ND * self.a_ND) @ m_CD.mT)

    def norms(self, m_CD: torch.Tensor) -> torch.Tensor:
        """m.P m / D, (N, C)."""
        return self.a_ND @ (m_CD**2).mT + self.factor_N1 * ((self.u_ND * self.a_ND) @ m_CD.mT) ** 2

    def _along(self, x_ND: torch.Tensor) -> torch.Tensor:
        return (x_ND * self.a_ND * self.u_ND).sum(dim=1, keepdim=True)


def _ridge(trace: torch.Tensor, count: torch.Tensor, width: int, floor: float, share: float | None) -> torch.Tensor:
    """Of scatter of such a trace, over so many examples."""
    own = trace / (count - 1).clamp(min=1) if share is None else share * trace / width
    return own + floor * trace / width


def leave_one_out(
    moments: Moments, samples: Samples, floor: float, ridge: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each sample adds to the logits of all classes when the moments do not hold it.

    Args:
        moments: that hold the samples. floor: as `Gda`. ridge: a share of the mean variance; None is the paper's.

    Returns:
        (N, C) float64, f.P mu_c - mu_c.P mu_c / 2 of the others; and (N,) bool, false where that cannot be said: the
        sample stands alone in its class, or the others have no scatter within classes.
    """
    scatter, means = moments.within(), moments.means
    values, basis = torch.linalg.eigh(scatter)
    values = values.clamp(min=0)
    width, x_ND, m_CD = len(scatter), samples.features.double() @ basis, means @ basis
    w_N1 = samples.weights.double()[:, None]
    n_N1 = moments.counts[samples.labels][:, None]
    usable = (n_N1 - w_N1 > NONE)[:, 0]
    left_N1 = torch.where(n_N1 - w_N1 > NONE, n_N1 - w_N1, 1)
    u_ND = x_ND - m_CD[samples.labels]
    k_N1 = n_N1 * w_N1 / left_N1
    trace_N1 = values.sum() - k_N1 * (u_ND**2).sum(dim=1, keepdim=True)
    usable &= moments.has_spread(trace_N1[:, 0])
    ridge_N1 = _ridge(trace_N1, moments.counts.sum() - w_N1, width, floor, ridge)
    a_ND = 1 / (values + ridge_N1.clamp(min=1e-12 * float(values.sum()) + 1e-300))
    shrink_N1 = 1 - k_N1 * (u_ND**2 * a_ND).sum(dim=1, keepdim=True)
    p = _Spectrum(a_ND, u_ND, k_N1 / shrink_N1.clamp(min=1e-12))
    own_ND = m_CD[samples.labels] - w_N1 / left_N1 * u_ND
    judged = p.with_all(x_ND, m_CD) - p.norms(m_CD) / 2
    own_N1 = p.with_one(x_ND, own_ND) - p.with_one(own_ND, own_ND) / 2
    return width * judged.scatter(1, samples.labels[:, None], own_N1), usable
