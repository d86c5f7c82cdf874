"""Harmonic means over windows, computed in logit space, where order is never lost.

WinCLIP (CVPR 2023) gives a patch the harmonic mean of the probabilities of all windows over it. As 1/p = 1 + e^-m for
p = sigmoid(m), that mean is again a sigmoid, of -log mean e^-m: a box filter of exponentials. It is computed as a
separable log-sum-exp, so margins of any size keep their order, whereas reciprocals of probabilities overflow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

EPSILON = 1e-6
"""Added to distances before their harmonic mean, which a single zero would otherwise make zero."""


def spread_windows(margins_Byx: torch.Tensor, side: tuple[int, int]) -> torch.Tensor:
    """Give each patch the soft minimum of the windows over it: -log mean e^-m.

    Args:
        margins_Byx: (B, h - kh + 1, w - kw + 1) logits of the windows, stride 1, in any float type.
        side: (kh, kw) of a window in patches.

    Returns:
        (B, h, w) float32. Its sigmoid is the harmonic mean of the windows' sigmoids.
    """
    total = -margins_Byx.float()
    count = torch.ones_like(total[:1])
    for axis, length in ((2, side[1]), (1, side[0])):
        total = _box(total, axis, length, -torch.inf).logsumexp(dim=-1)
        count = _box(count, axis, length, 0.0).sum(dim=-1)
    return count.log() - total


def soft_min(margins: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same mean over maps of one shape, such as those of several scales: sigmoid gives their harmonic mean."""
    stacked = -torch.stack([margin.float() for margin in margins])
    return torch.logsumexp(stacked, dim=0).neg() + torch.log(torch.tensor(float(len(stacked))))


def spread_distances(distances_Byx: torch.Tensor, side: tuple[int, int]) -> torch.Tensor:
    """Harmonic mean of the windows' distances (0 or more) at each patch: (B, h, w) float32, `EPSILON` above zero."""
    return spread_windows((distances_Byx.float().clamp(min=0) + EPSILON).log(), side).exp()


def mix_probabilities(margins: Sequence[torch.Tensor]) -> torch.Tensor:
    """The arithmetic mean of probabilities that are given and returned as logits."""
    stacked = torch.stack([margin.float() for margin in margins])
    return torch.logsumexp(F.logsigmoid(stacked), dim=0) - torch.logsumexp(F.logsigmoid(-stacked), dim=0)


def _box(values: torch.Tensor, axis: int, length: int, fill: float) -> torch.Tensor:
    """The `length` neighbours before and at each place, as a last dimension; a view, except for the edges."""
    rim = [0, 0] * (2 - axis) + [length - 1, length - 1]
    return F.pad(values, rim, value=fill).unfold(axis, length, 1)
