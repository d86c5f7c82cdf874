"""Plain torch: the specification of every operator, and the path that runs on the CPU.

Shape letters: B batch, A heads, N tokens, d head width, T text queries, H/W pixels, Y/X window tokens per axis.
"""

from __future__ import annotations

from functools import lru_cache
from typing import overload

import torch
from torch.nn import functional as F

from densevl.kernels.resample import DecodePlan

AFFINITY_ROWS = 256  # rows of an N x N affinity held at once
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
    extra: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scale * q k^T + bias) v with a bias that comes from grid coordinates: (B, A, N, d).

    Args:
        q: (B, A, N, d), N = prefix + h*w. k, v: (B, A, M, d); M = N, or h*w when the prefix is not among the keys.
        grid: (h, w); prefix: leading tokens that are not patches.
        std: width of the Gaussian neighbourhood bias in patches, or None for no bias.
        scale: factor on q k^T; None means 1 / sqrt(d).
        extra: a further bias, broadcastable to (B, A, N, M), for methods that have one; None for none.

    No N x N scores are held; of the bias at most `BIAS_ROWS` query rows are.
    """
    if std is None and extra is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    total = prefix + grid[0] * grid[1]
    first_key = total - k.shape[2]
    step = total if total <= BIAS_TOKENS else BIAS_ROWS
    parts = []
    for start in range(0, total, step):
        rows = slice(start, min(start + step, total))
        bias = q.new_zeros(()) if std is None else gaussian_bias(grid, std, prefix, rows)[:, first_key:].to(q)
        bias = bias if extra is None else bias + extra[..., rows, :].to(q)
        parts.append(F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=bias, scale=scale))
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def affinity_mean(x: torch.Tensor, floor: float | None = None) -> torch.Tensor:
    """Mean of all N^2 cosines of unit rows x (B, N, P), an image at a time: (B,).

    Without a floor it is ||mean_i x_i||^2, no N x N pass; with one, cosines under it count as 0.
    """
    if floor is None:
        return x.mean(dim=1).square().sum(dim=-1)
    total = x.new_zeros(len(x))
    for part in x.split(AFFINITY_ROWS, dim=1):
        cosines = part @ x.mT
        total += torch.where(cosines >= floor, cosines, 0).sum(dim=(1, 2))
    return total / x.shape[1] ** 2


def affinity_apply(
    x: torch.Tensor,
    v: torch.Tensor,
    *,
    gamma: float = 1.0,
    beta: float | None = None,
    floor: float | None = None,
    linear: bool = False,
    regions: torch.Tensor | None = None,
    blank: int | None = None,
    mean: torch.Tensor | None = None,
) -> torch.Tensor:
    """Spread values over like tokens: an affinity of unit rows applied to values, a few rows of it at a time.

    Args:
        x: (B, N, P) unit rows; v: (B, N, E).
        gamma, beta: weights are softmax(gamma * (G - beta * mean G)) with what is under zero left out; beta None
            leaves nothing out. G = x x^T, the mean is an image's own unless `mean` (B,) is given.
        floor: cosines under it count as 0, in the mean too.
        linear: weights are G itself, floored, divided by their row sum; gamma and beta are not used.
        regions: (B, N) integers: a token looks only at tokens of its own region.
        blank: the region of tokens that belong to none: a pair with one of them counts if its cosine is above the mean.

    Returns:
        (B, N, E). A token always looks at itself, so that no row is empty: where the papers' code is finite this
        changes nothing, and where it divides by nothing the token keeps its own value.
    """
    if mean is None and (beta is not None or blank is not None):
        mean = affinity_mean(x, floor)
    parts = []
    for start in range(0, x.shape[1], AFFINITY_ROWS):
        rows = slice(start, min(start + AFFINITY_ROWS, x.shape[1]))
        weights = x[:, rows] @ x.mT
        out = torch.zeros_like(weights, dtype=torch.bool)
        if regions is not None:
            out = _elsewhere(weights, regions[:, rows, None], regions[:, None, :], blank, mean)
        if floor is not None:
            low = weights < floor
            weights = weights.masked_fill(low, 0)
            out = out | low if linear else out
        if not linear and beta is not None and mean is not None:
            weights = (weights - (beta * mean).view(-1, 1, 1)) * gamma
            out = out | (weights < 0)
        elif not linear:
            weights = weights * gamma
        out.diagonal(offset=start, dim1=1, dim2=2).fill_(False)
        if linear:
            weights = weights.masked_fill(out, 0)
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)
        else:
            weights = weights.masked_fill(out, -torch.inf).softmax(dim=-1)
        parts.append(weights @ v)
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _elsewhere(
    cosines: torch.Tensor, own: torch.Tensor, other: torch.Tensor, blank: int | None, mean: torch.Tensor | None
) -> torch.Tensor:
    """Which pairs regions keep apart, (B, R, N) bool; see `affinity_apply`."""
    if blank is None or mean is None:
        return own != other
    free = (own == blank) | (other == blank)
    return torch.where(free, cosines <= mean.view(-1, 1, 1), own != other)


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
    """Trident's global aggregation: attention probabilities of another model, cut by its values' cosines, applied to x.

    weight_ij = mean over heads of p_aij [g_ai . g_aj > limit_i], rows divided by their sums; p the softmax over the
    whole grid, g unit values, limit_i = min(cap, factor * mean over heads and keys of g_ai . g_aj).

    Args:
        q, k, v: (B, A, N, d), N = h*w of `grid`; rel: (B*A, N, h+w) relative position logits, or None.
        x: (B, n, E) values, n the tokens of the top left part `covered` of the grid.
        negative: replaces a limit below 0, or None.

    Returns:
        (B, n, E); a token whose row is empty keeps its own value.
    """
    h, w = grid
    corner = (torch.arange(covered[0])[:, None] * w + torch.arange(covered[1])).flatten().to(q.device)
    unit = F.normalize(v[:, :, corner], dim=-1)
    limit = factor * torch.einsum("band,bad->ban", unit, unit.mean(dim=2)).mean(dim=1)  # (B, n)
    if negative is not None:
        limit = torch.where(limit < 0, negative, limit)
    limit = limit.clamp(max=cap)
    parts = []
    for start in range(0, len(corner), AFFINITY_ROWS):
        rows = slice(start, start + AFFINITY_ROWS)
        weights = x.new_zeros(len(x), len(corner[rows]), len(corner))
        for head in range(q.shape[1]):
            logits = q[:, head, corner[rows]] @ k[:, head].mT * q.shape[-1] ** -0.5
            if rel is not None:
                own = rel.unflatten(0, (len(x), -1))[:, head, corner[rows]]
                logits = logits + (own[..., :h, None] + own[..., None, h:]).flatten(2)
            kept = unit[:, head, rows] @ unit[:, head].mT > limit[:, rows, None]
            weights += logits.softmax(dim=-1)[..., corner].to(x) * kept
        total = weights.sum(dim=-1, keepdim=True)
        parts.append(torch.where(total > 0, weights @ x / total.clamp(min=1e-30), x[:, rows]))
    return torch.cat(parts, dim=1)


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
