"""Muon: momentum whose matrix updates are made orthogonal by a few Newton-Schulz steps (Jordan et al., 2024).

Matrices of equal shape are stacked, so a step is a handful of batched products. torch's own `optim.Muon` takes them
one at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(g_MRC: torch.Tensor, steps: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Push the singular values of stacked matrices (M, R, C) towards one; R <= C is the cheap side.

    Returns:
        (M, R, C) float32.
    """
    a, b, c = COEFFICIENTS
    if g_MRC.shape[1] > g_MRC.shape[2]:
        return orthogonalize(g_MRC.mT, steps, dtype).mT
    x = (g_MRC / g_MRC.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None]).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.float()


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum for 2-D weights; a weight (k*R, R) that stacks k squares (q, k, v) is split."""

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        decay: float = 0.02,
        stacked: int = 3,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Take 2-D parameters.

        Args:
            params: the weights, each (R, C).
            lr: step length; an update has singular values near lr * sqrt(max(1, R / C)).
            momentum: of the running mean of gradients.
            decay: decoupled weight decay, times lr.
            stacked: weights with R = stacked * C are taken as that many squares.
            dtype: of the Newton-Schulz products.
        """
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})
        self._stacked, self._dtype = stacked, dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    for weight, update in zip(self._parts(p), self._parts(self._nesterov(p, group)), strict=True):
                        shapes[tuple(weight.shape)].append((weight, update))
            for (rows, columns), pairs in shapes.items():
                updates = orthogonalize(torch.stack([update for _, update in pairs]), dtype=self._dtype)
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (weight, _), update in zip(pairs, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["decay"]).sub_(update, alpha=scale)

    def _nesterov(self, p: torch.Tensor, group: dict[str, float]) -> torch.Tensor:
        state = self.state[p]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(p)
        mean = state["mean"].lerp_(p.grad, 1 - group["momentum"])
        return p.grad.lerp(mean, group["momentum"])

    def _parts(self, matrix: torch.Tensor) -> list[torch.Tensor]:
        rows, columns = matrix.shape
        return list(matrix.split(columns)) if rows == self._stacked * columns else [matrix]
