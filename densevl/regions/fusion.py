"""Combine several judgements of the same regions in log space, and choose the regions that deserve a second look.

OVSeg, FC-CLIP and F-ViT take a weighted geometric mean of class probabilities, with a weight for each class. Because
weights differ between classes, the result is normalised again. Logarithms are used because probabilities underflow.
Shape letters: R regions, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from densevl.errors import OptionError, one_of

MODES = ("geometric", "arithmetic", "max")


@dataclass(frozen=True, eq=False)
class ScoreSource:
    """One judgement.

    Attributes:
        logp: (R, C) log probabilities, -inf allowed.
        weight: a number, or one for each class (C,); only ratios between sources count.
        valid: bool (R,), the regions it can judge; None means all.
    """

    logp: torch.Tensor
    weight: float | torch.Tensor = 1.0
    valid: torch.Tensor | None = None

    def weights(self) -> torch.Tensor:
        """Weights (R, C), 0 where the source is not valid."""
        weight = torch.as_tensor(self.weight, dtype=self.logp.dtype, device=self.logp.device)
        weights = weight.expand(self.logp.shape[1]).expand(self.logp.shape)
        return weights if self.valid is None else weights * self.valid[:, None]


def fuse(sources: Sequence[ScoreSource], mode: str = "geometric") -> torch.Tensor:
    """Combine judgements of the same R regions over the same C classes.

    Args:
        sources: at least one.
        mode: "geometric", the weighted mean of logarithms; "arithmetic", of probabilities; "max", the largest weighted
            probability.

    Returns:
        (R, C) log probabilities, rows normalised; uniform where no source is valid.

    Raises:
        OptionError: there are no sources, their shapes differ, weights are negative, or the mode is unknown.
    """
    one_of(mode, MODES, "fusion", OptionError)
    shapes = {tuple(source.logp.shape) for source in sources}
    if len(shapes) != 1:
        raise OptionError(f"sources of shapes {sorted(shapes)}; give at least one, all (R, C) alike")
    weights = torch.stack([source.weights() for source in sources])
    if (weights < 0).any():
        raise OptionError("a source has a negative weight; weights are 0 or more")
    logp = torch.stack([source.logp for source in sources])
    total = weights.sum(dim=0)
    share = weights / total.clamp(min=1e-30)
    if mode == "geometric":
        fused = torch.where(share > 0, share * logp, 0.0).sum(dim=0)
    elif mode == "arithmetic":
        fused = (share.log() + logp).logsumexp(dim=0)
    else:
        fused = (share.log() + logp).amax(dim=0)
    fused = torch.where(total > 0, fused, -torch.inf)
    silent = fused.isneginf().all(dim=1, keepdim=True)
    return torch.where(silent, 0.0, fused).log_softmax(dim=1)


def entropy(logp: torch.Tensor) -> torch.Tensor:
    """Entropy of each row divided by its maximum: (R,) in 0..1."""
    p = logp.exp()
    total = -torch.where(p > 0, p * logp, 0.0).sum(dim=1)
    return total / max(torch.tensor(float(logp.shape[1])).log().item(), 1e-12)


def uncertain(logp: torch.Tensor, share: float = 0.15, least: float = 0.1) -> torch.Tensor:
    """The regions to look at again: int64 indices of the `share` with the highest entropy, all of at least `least`.

    Ties go to the smaller index. The result is in ascending order.
    """
    level = entropy(logp)
    count = min(len(level), -(-round(1000 * share * len(level)) // 1000))
    order = torch.argsort(level, descending=True, stable=True)[:count]
    return order[level[order] >= least].sort().values
