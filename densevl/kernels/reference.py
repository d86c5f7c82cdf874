"""Plain torch: the specification of every operator, and the path that runs on the CPU.

Shape letters: B batch, A heads, N tokens, d head width, T text queries, H/W pixels, Y/X window tokens per axis.
"""

from __future__ import annotations

from functools import lru_cache
from typing import overload

import torch
from torch.nn import functional as F

from densevl.kernels.resample import DecodePlan

BIAS_ROWS = 1024  # query rows whose shared bias is held at once
BIAS_TOKENS = 2304  # up to this many tokens the whole (N, N) bias is held
DECODE_ROWS, DECODE_COLUMNS = 16, 128  # pixels whose T scores are held at once


@lru_cache(maxsize=8)
def _gaussian_axes(grid: tuple[int, int], std: float) -> tuple[torch.Tensor, torch.Tensor]:
    def axis(n: int) -> torch.Tensor:
        steps = torch.arange(n, dtype=torch.float32)
        return torch.exp(-((steps[:, None] - steps[None, :]) ** 2) / (2 * std * std))

    return axis(grid[0]), axis(grid[1])


def gaussian_bias(grid: tuple[int, int], std: float, prefix: int, rows: slice = slice(None)) -> torch.Tensor:
    """Neighbourhood bias of NACLIP for query tokens `rows`: (R, N) float32, N = prefix + h*w.

    exp(-dist^2 / (2 std^2)) with the distance in patches, 0 where either token is a prefix token. The Gaussian is
    separable, so it is an outer product of two small axis tables and never an N x N distance.
    """
    h, w = grid
    gy, gx = _gaussian_axes(grid, std)
    first, last, _ = rows.indices(prefix + h * w)
    bias = torch.zeros(last - first, prefix + h * w)
    patches = torch.arange(max(first, prefix) - prefix, max(last, prefix) - prefix)
    bias[max(prefix - first, 0) :, prefix:] = (gy[patches // w, :, None] * gx[patches % w, None, :]).flatten(1)
    return bias


def grid_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid: tuple[int, int],
    prefix: int = 0,
    std: float | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale * q k^T + bias) v with a bias that comes from grid coordinates: (B, A, N, d).

    Args:
        q: (B, A, N, d), N = prefix + h*w. k, v: (B, A, M, d); M = N, or h*w when the prefix is not among the keys.
        grid: (h, w); prefix: leading tokens that are not patches.
        std: width of the Gaussian neighbourhood bias in patches, or None for no bias.
        scale: factor on q k^T; None means 1 / sqrt(d).

    No N x N scores are held; of the bias at most `BIAS_ROWS` query rows are.
    """
    if std is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    total = prefix + grid[0] * grid[1]
    first_key = total - k.shape[2]
    step = total if total <= BIAS_TOKENS else BIAS_ROWS
    parts = []
    for start in range(0, total, step):
        rows = slice(start, min(start + step, total))
        bias = gaussian_bias(grid, std, prefix, rows)[:, first_key:].to(q)
        parts.append(F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=bias, scale=scale))
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


@overload
def dense_decode(
    scores: torch.Tensor, plan: DecodePlan, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...


@overload
def dense_decode(
    scores: torch.Tensor, plan: DecodePlan, scale: None = None
) -> tuple[torch.Tensor, torch.Tensor, None]: ...


def dense_decode(
    scores: torch.Tensor, plan: DecodePlan, scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Window scores to the best query of every pixel, without T x H x W.

    Args:
        scores: (B, Y, X, T) float32, windows laid as a block matrix (see `DecodePlan`).
        plan: the linear map from window tokens to output pixels, one small matrix per axis.
        scale: if given, also return logsumexp(scale * score) over the T queries.

    Returns:
        label (B, H, W) int32, the best query, the smallest index among equals; score (B, H, W) float32, its
        interpolated score; lse (B, H, W) float32 natural log, or None.
    """
    batch, (height, width) = scores.shape[0], plan.size
    label = torch.empty(batch, height, width, dtype=torch.int32, device=scores.device)
    score = torch.empty(batch, height, width, device=scores.device)
    lse = torch.empty_like(score) if scale is not None else None
    column_blocks = list(plan.cols.blocks(DECODE_COLUMNS))
    for rows in plan.rows.blocks(DECODE_ROWS):
        strip = torch.einsum("ry,byxt->brxt", rows.weights.to(scores), scores[:, rows.touched])
        for cols in column_blocks:
            tile = torch.matmul(cols.weights.to(scores), strip[:, :, cols.touched])  # (B, r, c, T)
            best, which = tile.max(dim=-1)
            label[:, rows.pixels, cols.pixels] = which.to(torch.int32)
            score[:, rows.pixels, cols.pixels] = best
            if scale is not None and lse is not None:
                # The maximum is known, so one exp per score and no second search for it.
                tile.sub_(best[..., None]).mul_(scale).exp_()
                lse[:, rows.pixels, cols.pixels] = tile.sum(dim=-1).log_() + scale * best
    return label, score, lse


def dense_scores(scores: torch.Tensor, plan: DecodePlan) -> torch.Tensor:
    """Window scores (B, Y, X, T) to pixel scores (B, T, H, W): the one call that builds the full volume."""
    rows = torch.einsum("hy,byxt->bhxt", plan.rows.matrix.to(scores), scores)
    return torch.einsum("wx,bhxt->bthw", plan.cols.matrix.to(scores), rows)
