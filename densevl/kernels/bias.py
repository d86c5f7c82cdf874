"""What attention may add to its logits by where tokens lie on the grid. No torch is imported: recipes hold these."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from densevl.errors import RecipeError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Gaussian:
    """Neighbourhood: a logit gains exp(-dist^2 / (2 std^2)), distance and std in patches (NACLIP, WACV 2025).

    Raises:
        RecipeError: the std is not above 0.
    """

    std: float

    def __post_init__(self) -> None:
        if isinstance(self.std, bool) or not isinstance(self.std, (int, float)) or not 0 < self.std < math.inf:
            raise RecipeError(f"the Gaussian's std in patches must be above 0, got {self.std!r}")


@dataclass(frozen=True, eq=False)
class RelPos:
    """Decomposed relative positions (SAM): the logit of query i and key (y, x) gains rel[i, y] + rel[i, h + x].

    Attributes: rel (B*A, N, h+w), made from the unscaled queries as SAM does.
    """

    rel: torch.Tensor
