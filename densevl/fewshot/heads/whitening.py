"""Features compared where examples of one class differ equally in all directions: relevant component analysis (RCA;
Bar-Hillel et al., JMLR 2005).

    cos(W (f - m), W (k - m)),   W = (S + RIDGE tr(S) / D  I)^-1/2

S is the scatter within classes, m the mean of the means of classes. Examples differ from each other most in what does
not matter, such as the background, and a plain cosine counts that as much as what tells classes apart. A metric that
has seen an example's label brings it nearer to its class, so settings are chosen on examples that the metric was fitted
without, fold by fold. Shape letters: N samples, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from densevl.fewshot.choosing import best, folds
from densevl.fewshot.head import Samples
from densevl.fewshot.heads.moments import Moments
from densevl.fewshot.settings import Rule

RIDGE = 0.1
WHITEN = {"whiten": Rule(flag=True, optional=True)}
MEAN, MATRIX = "whitening mean", "whitening matrix"


@dataclass(frozen=True, eq=False)
class Whitening:
    """The map. Attributes: mean: (D,). matrix: (D, D), symmetric."""

    mean: torch.Tensor
    matrix: torch.Tensor

    @classmethod
    def of(cls, samples: Samples) -> Whitening | None:
        """Of unit features; None where they do not differ. Where no class has two that do, S is about the mean."""
        moments = Moments.of(samples.features, samples.labels, samples.weights, int(samples.labels.max()) + 1)
        scatter_DD = moments.scatter()
        if not moments.has_spread(scatter_DD.trace()):
            return None
        values_D, basis_DD = torch.linalg.eigh(scatter_DD)
        ridge = RIDGE * scatter_DD.trace() / len(scatter_DD)
        matrix_DD = basis_DD * (values_D.clamp(min=0) + ridge).rsqrt() @ basis_DD.mT
        scale = matrix_DD.diagonal().mean()  # which changes no cosine, and keeps float32 in range
        mean_D = moments.means[moments.seen].mean(dim=0)
        return cls(mean_D.to(samples.features), (matrix_DD / scale).to(samples.features))

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Unit rows (..., D)."""
        return F.normalize((rows - self.mean) @ self.matrix, dim=-1)

    def tensors(self) -> dict[str, torch.Tensor]:
        """By name, for a head's state."""
        return {MEAN: self.mean, MATRIX: self.matrix}

    @classmethod
    def read(cls, tensors: dict[str, torch.Tensor]) -> Whitening | None:
        """What `tensors` gave, among other things."""
        return cls(tensors[MEAN], tensors[MATRIX]) if MEAN in tensors else None


def placed(whitening: Whitening | None, rows: torch.Tensor) -> torch.Tensor:
    """Rows where they are compared."""
    return rows if whitening is None else whitening(rows)


@dataclass(frozen=True, eq=False)
class Part:
    """One fold: the `judged` examples (n,), the `rest` (m,), and the metric that was fitted on these."""

    judged: torch.Tensor
    rest: torch.Tensor
    whitening: Whitening | None


def parts(samples: Samples, some: torch.Tensor, *, whiten: bool) -> Iterator[Part]:
    """Folds of examples.

    Args:
        some: (N,) bool, those that are judged, if their class has another.
    """
    for out_N in folds(samples.labels):
        judged, rest = (out_N & some).nonzero().flatten(), (~out_N).nonzero().flatten()
        if len(judged):
            few = Samples(samples.features[rest], samples.labels[rest], samples.weights[rest])
            yield Part(judged, rest, Whitening.of(few) if whiten else None)


def prefers(
    whiten: bool | None,
    samples: Samples,
    some: torch.Tensor,
    judge: Callable[[Part], torch.Tensor],
    words_NC: torch.Tensor,
    seen_C: torch.Tensor,
) -> bool:
    """Whether examples are more probable in the metric than by plain cosines, each judged by others.

    Args:
        whiten: as given; None chooses, and takes plain cosines where no class has two examples.
        judge: logits (n, C) of the examples that a part judges. words_NC: of all examples.
    """
    if whiten is not None:
        return whiten

    def candidates() -> Iterator[tuple[bool, torch.Tensor]]:
        for metric in (False, True):
            logits = [judge(part) for part in parts(samples, some, whiten=metric)]
            if logits:
                yield metric, torch.cat(logits)

    order = [part.judged for part in parts(samples, some, whiten=False)]
    if not order:
        return False
    chosen = torch.cat(order)
    return bool(best(candidates(), words_NC[chosen], seen_C, samples.labels[chosen]))
