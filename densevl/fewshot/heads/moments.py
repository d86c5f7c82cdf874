"""`Moments`: all that Gaussian classes of one covariance need, gathered as examples come, in any order, on any machine.

Counts, sums and one Gram matrix, in float64: the scatter within classes is the Gram matrix less n mu mu^T of each
class. They add up, so parts may be merged and examples taken out again. Shape letters: N samples, C classes, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from densevl.errors import ModelError

NONE = 1e-9  # a class of less weight has no examples: what taking out leaves of rounding


@dataclass(frozen=True, eq=False)
class Moments:
    """Attributes: counts (C,), sums (C, D), gram (D, D), float64; weights of samples add up in `counts`."""

    counts: torch.Tensor
    sums: torch.Tensor
    gram: torch.Tensor

    @classmethod
    def of(cls, rows_ND: torch.Tensor, labels_N: torch.Tensor, weights_N: torch.Tensor, classes: int) -> Moments:
        """Of some samples."""
        rows, weights = rows_ND.double(), weights_N.double()
        member_NC = F.one_hot(labels_N, classes).double() * weights[:, None]
        return cls(member_NC.sum(dim=0), member_NC.mT @ rows, rows.mT @ (rows * weights[:, None]))

    def __add__(self, other: Moments) -> Moments:
        self._fit(other)
        return Moments(self.counts + other.counts, self.sums + other.sums, self.gram + other.gram)

    def __sub__(self, other: Moments) -> Moments:
        """Without samples that are in it.

        Raises:
            ModelError: they are not.
        """
        self._fit(other)
        counts = self.counts - other.counts
        if bool((counts < -NONE).any()):
            raise ModelError("more examples are taken out of a class than were put in")
        left = counts > NONE
        return Moments(
            torch.where(left, counts, 0), torch.where(left[:, None], self.sums - other.sums, 0), self.gram - other.gram
        )

    @property
    def seen(self) -> torch.Tensor:
        """(C,) bool, which classes have samples."""
        return self.counts > NONE

    @property
    def means(self) -> torch.Tensor:
        """(C, D), 0 for a class without samples."""
        return self.sums / self.counts.clamp(min=NONE)[:, None]

    def within(self) -> torch.Tensor:
        """The scatter within classes, (D, D)."""
        return self.gram - self.means.mT @ self.sums

    def has_spread(self, trace: torch.Tensor) -> torch.Tensor:
        """Whether traces of scatter are more than rounding."""
        return trace > 1e-10 * self.gram.trace()

    def scatter(self) -> torch.Tensor:
        """Within classes; where no class has two unlike samples, about the mean of all instead: (D, D)."""
        within = self.within()
        if self.has_spread(within.trace()):
            return within
        total = self.sums.sum(dim=0)
        return self.gram - torch.outer(total, total) / self.counts.sum().clamp(min=NONE)

    def moved(self, numbers_C: torch.Tensor, classes: int) -> Moments:
        """Of so many classes. Args: numbers_C: the new number of each, -1 for one without samples that is left out."""
        kept = numbers_C >= 0
        counts, sums = self.counts.new_zeros(classes), self.sums.new_zeros(classes, self.sums.shape[1])
        counts[numbers_C[kept]], sums[numbers_C[kept]] = self.counts[kept], self.sums[kept]
        return Moments(counts, sums, self.gram)

    def _fit(self, other: Moments) -> None:
        if self.sums.shape != other.sums.shape:
            shapes = f"{tuple(self.sums.shape)} and {tuple(other.sums.shape)}"
            raise ModelError(f"moments of {shapes} classes and channels do not add up")
