"""Attention probabilities of another model applied to values of one's own: `affinity_mix`."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densevl.kernels.attention import heads, relative_bias
from densevl.kernels.common import empty, mix_limit, need, runs, types, wide
from densevl.kernels.dispatch import KernelError, runs_kernel

MIXED_ROWS = 384  # rows of the n x n map held at once
MOST_HEADS = 127  # summed probabilities must fit float16, see `triton.mix`


def affinity_mix(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    x: torch.Tensor,
    *,
    grid: tuple[int, int],
    covered: tuple[int, int],
    rel: torch.Tensor | None = None,
    factor: float = 1.2,
    cap: float = 0.9,
    negative: float | None = None,
) -> torch.Tensor:
    """Attention probabilities of another model, cut by its values' cosines, applied to x (Trident, ICCV 2025).

    weight_ij = mean over heads of p_aij [g_ai . g_aj > limit_i], rows divided by their sums; p the softmax over the
    whole grid, g unit values, limit_i = min(cap, factor * mean over heads and keys of g_ai . g_aj).

    Args:
        q, k, v: (B, A, N, d), N = h*w of `grid`; rel: (B*A, N, h+w) relative position logits, or None.
        x: (B, n, E) values, n the tokens of the top left part `covered` of the grid.
        negative: replaces a limit below 0, or None.

    Returns:
        (B, n, E); a token whose row is empty keeps its own value.

    Raises:
        KernelError: shapes that do not fit.
    """
    tokens, inner = grid[0] * grid[1], covered[0] * covered[1]
    need(q.ndim == 4 and q.shape[2] == tokens, "q", q, "(B, A, {}, d)", tokens)
    need(k.shape == q.shape and v.shape == q.shape, "k", k, "q and v of one shape, {}", q.shape)
    need(x.ndim == 3 and x.shape[:2] == (q.shape[0], inner), "x", x, "({}, {}, E)", q.shape[0], inner)
    if covered[0] > grid[0] or covered[1] > grid[1]:
        raise KernelError(f"covered {covered} reaches past the grid {grid}")
    if rel is not None:
        wanted = (q.shape[0] * q.shape[1], tokens, sum(grid))
        need(tuple(rel.shape) == wanted, "rel", rel, "({}, {}, {})", *wanted)

    if runs_kernel(
        "affinity_mix",
        (q, k, v, x, rel),
        lambda: (
            f"{q.shape[1]} heads are more than {MOST_HEADS}"
            if q.shape[1] > MOST_HEADS
            else heads(q, rel) or types(q, k, v, x) or empty(q, x)
        ),
    ):
        from densevl.kernels.triton.mix import affinity_mix as kernel

        return kernel(q, k, v, x, grid, covered, rel, factor, cap, negative)

    kind = x.dtype
    q, k, v, x, rel = wide(q), wide(k), wide(v), wide(x), wide(rel)
    corner = (torch.arange(covered[0])[:, None] * grid[1] + torch.arange(covered[1])).flatten().to(q.device)
    unit = F.normalize(v[:, :, corner], dim=-1)
    limit = mix_limit(unit, factor, cap, negative)
    mixed = x.new_empty(x.shape)
    for rows in runs(inner, MIXED_ROWS):
        weights = x.new_zeros(x.shape[0], corner[rows].shape[0], inner)
        for head in range(q.shape[1]):
            logits = q[:, head, corner[rows]] @ k[:, head].mT * q.shape[-1] ** -0.5
            if rel is not None:
                own = rel.unflatten(0, q.shape[:2])[:, head, corner[rows]]
                logits = logits + relative_bias(own, grid)
            kept = unit[:, head, rows] @ unit[:, head].mT > limit[:, rows, None]
            weights += logits.softmax(dim=-1)[..., corner].to(x) * kept
        total = weights.sum(dim=-1, keepdim=True)
        mixed[:, rows] = torch.where(total > 0, weights @ x / total.clamp(min=1e-30), x[:, rows])
    return mixed.to(kind)
