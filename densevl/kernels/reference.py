"""Plain torch: the specification of every operator, and the path that runs on the CPU.

Shape letters: B batch, A heads, N tokens, d head width, T text queries, H/W pixels, Y/X window tokens per axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, overload

import torch
from torch.nn import functional as F

from densevl.kernels.resample import DecodePlan

AFFINITY_ROWS = 384  # rows of an N x N affinity held at once
COSINES_HELD = 2304**2  # entries of an N x N affinity that may be held whole
BIAS_ROWS = 1024  # query rows whose shared bias is held at once
BIAS_TOKENS = 2304  # up to this many tokens the whole (N, N) bias is held
RELATIVE_ROWS = 256  # query rows of one head whose logits with relative positions are held
RELATIVE_HELD = 2**22  # entries of the bias of all heads that may be held together
LOGITS_HELD = 2**23  # entries of the logits of all heads that are written out together
MEMORY_ROWS, MEMORY_QUERIES = 4096, 1024  # similarities held at once
LOG2E = math.log2(math.e)
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
    between = bias[max(prefix - first, 0) :, prefix:].unflatten(1, grid)
    torch.mul(gy[patches // w, :, None], gx[patches % w, None, :], out=between)
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
    *,
    rel: torch.Tensor | None = None,
    want_lse: bool = False,
) -> Any:
    """softmax(scale * q k^T + bias) v with a bias that comes from grid coordinates: (B, A, N, d).

    Args:
        q: (B, A, N, d), N = prefix + h*w. k, v: (B, A, M, d); M = N, or h*w when the prefix is not among the keys.
        grid: (h, w); prefix: leading tokens that are not patches.
        std: width of the Gaussian neighbourhood bias in patches, or None for no bias.
        scale: factor on q k^T; None means 1 / sqrt(d).
        extra: a further bias, broadcastable to (B, A, N, M), for methods that have one; None for none.
        rel: (B*A, N, h+w) decomposed relative positions as SAM has them, the only bias then and with prefix 0: query i
            and key (y, x) gain rel[i, y] + rel[i, h + x].
        want_lse: also return log2 of the rows' sums of exp(logit), (B, A, N) float32; this holds logits a few rows at
            a time.

    No N x N scores of all heads are held; of a bias at most `BIAS_ROWS` query rows, or one head's map.
    """
    if want_lse:
        return _attention_and_lse(q, k, v, grid, prefix, std, scale, extra, rel)
    if rel is not None:
        return _relative_attention(q, k, v, grid, scale, rel)
    if std is None and extra is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    total = prefix + grid[0] * grid[1]
    first_key = total - k.shape[2]
    step = total if total <= BIAS_TOKENS else BIAS_ROWS
    out = _laid_out(q, v)
    for start in range(0, total, max(step, 1)):
        rows = slice(start, min(start + step, total))
        bias = q.new_zeros(()) if std is None else gaussian_bias(grid, std, prefix, rows)[:, first_key:].to(q)
        bias = bias if extra is None else bias + extra[..., rows, :].to(q)
        out[:, :, rows] = F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=bias, scale=scale)
    return out


def _laid_out(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Room for an attention's result (B, A, N, d), in the memory order that the output projection reads."""
    return v.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)


def relative_bias(rel: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Relative position terms (..., h+w) of some queries to their bias against every key of the grid: (..., h*w)."""
    h = grid[0]
    return (rel[..., :h, None] + rel[..., None, h:]).flatten(-2)


def _relative_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: tuple[int, int], scale: float | None, rel: torch.Tensor
) -> torch.Tensor:
    """Attention with decomposed relative positions, some rows of one head at a time, in one buffer used again."""
    batch, heads, total, _ = q.shape
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, rel))
    # Many small maps, as SAM's windows are, go in one call: a head at a time would be all overhead.
    if needs_grad or q.is_cuda or batch * heads * total**2 <= RELATIVE_HELD:
        bias = relative_bias(rel, grid).unflatten(0, (batch, heads)).to(q)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    out = _laid_out(q, v)
    buffer = q.new_empty(min(RELATIVE_ROWS, total), *grid)
    for pair in range(batch * heads):
        at = pair // heads, pair % heads
        keys, values = k[at].mT * factor, v[at]
        for rows in torch.arange(total).split(RELATIVE_ROWS):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            own = rel[pair, part].to(q)
            logits = buffer[: len(own)]
            torch.add(own[:, : grid[0], None], own[:, None, grid[0] :], out=logits)
            flat = logits.flatten(1)
            torch.softmax(flat.addmm_(q[at][part], keys), dim=-1, out=flat)
            out[at][part] = flat @ values
    return out


def _attention_and_lse(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid: tuple[int, int],
    prefix: int,
    std: float | None,
    scale: float | None,
    extra: torch.Tensor | None,
    rel: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `grid_attention`, with the logits of a few query rows written out for their logsumexp."""
    total = q.shape[2]
    first_key = total - k.shape[2]
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse = _laid_out(q, v), torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    step = max(1, LOGITS_HELD // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    for start in range(0, total, step):
        rows = slice(start, min(start + step, total))
        logits = q[:, :, rows] @ k.mT * factor
        if std is not None:
            logits = logits + gaussian_bias(grid, std, prefix, rows)[:, first_key:].to(q)
        if rel is not None:
            logits = logits + relative_bias(rel[:, rows], grid).unflatten(0, q.shape[:2]).to(q)
        if extra is not None:
            logits = logits + extra[..., rows, :].to(q)
        out[:, :, rows] = logits.softmax(dim=-1) @ v
        lse[:, :, rows] = logits.float().logsumexp(dim=-1) * LOG2E
    return out, lse


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
    spread = v.new_empty(v.shape)
    for rows, weights in _cosine_rows(x):
        out = None
        if regions is not None:
            out = _elsewhere(weights, regions[:, rows, None], regions[:, None, :], blank, mean)
        if floor is not None:
            low = weights < floor
            weights.masked_fill_(low, 0)
            if linear:
                out = low if out is None else out | low
        if not linear and beta is not None and mean is not None:
            under = weights < (beta * mean).view(-1, 1, 1)
            out = under if out is None else out | under
        if out is not None:
            out.diagonal(offset=rows.start, dim1=1, dim2=2).fill_(False)
        if linear:
            weights = weights if out is None else weights.masked_fill_(out, 0)
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)
        else:
            weights = weights.mul_(gamma)
            weights = (weights if out is None else weights.masked_fill_(out, -torch.inf)).softmax(dim=-1)
        spread[:, rows] = weights @ v
    return spread


def _cosine_rows(x: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """x x^T some rows at a time, each (B, R, N) free to be changed.

    The product is symmetric: where it may be held, half of it is computed and the other half copied.
    """
    total = x.shape[1]
    steps = [slice(start, min(start + AFFINITY_ROWS, total)) for start in range(0, total, AFFINITY_ROWS)]
    if len(steps) == 1 or len(x) * total**2 > COSINES_HELD or (torch.is_grad_enabled() and x.requires_grad):
        for rows in steps:
            yield rows, x[:, rows] @ x.mT
        return
    cosines = x.new_empty(len(x), total, total)
    for rows in steps:
        part = x[:, rows] @ x[:, rows.start :].mT
        cosines[:, rows, rows.start :] = part
        cosines[:, rows.stop :, rows] = part[:, :, rows.stop - rows.start :].mT
        yield rows, cosines[:, rows]


def _elsewhere(
    cosines: torch.Tensor, own: torch.Tensor, other: torch.Tensor, blank: int | None, mean: torch.Tensor | None
) -> torch.Tensor:
    """Which pairs regions keep apart, (B, R, N) bool; see `affinity_apply`."""
    if blank is None or mean is None:
        return own != other
    free = (own == blank) | (other == blank)
    return torch.where(free, cosines <= mean.view(-1, 1, 1), own != other)


def mix_limit(unit: torch.Tensor, factor: float, cap: float, negative: float | None) -> torch.Tensor:
    """The cosine each token must pass in `affinity_mix`, from unit values (B, A, n, d): (B, n)."""
    limit = factor * torch.einsum("band,bad->ban", unit, unit.mean(dim=2)).mean(dim=1)
    if negative is not None:
        limit = torch.where(limit < 0, negative, limit)
    return limit.clamp(max=cap)


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
    w = grid[1]
    corner = (torch.arange(covered[0])[:, None] * w + torch.arange(covered[1])).flatten().to(q.device)
    unit = F.normalize(v[:, :, corner], dim=-1)
    limit = mix_limit(unit, factor, cap, negative)
    mixed = x.new_empty(x.shape)
    for start in range(0, len(corner), AFFINITY_ROWS):
        rows = slice(start, start + AFFINITY_ROWS)
        weights = x.new_zeros(len(x), len(corner[rows]), len(corner))
        for head in range(q.shape[1]):
            logits = q[:, head, corner[rows]] @ k[:, head].mT * q.shape[-1] ** -0.5
            if rel is not None:
                own = rel.unflatten(0, q.shape[:2])[:, head, corner[rows]]
                logits = logits + relative_bias(own, grid)
            kept = unit[:, head, rows] @ unit[:, head].mT > limit[:, rows, None]
            weights += logits.softmax(dim=-1)[..., corner].to(x) * kept
        total = weights.sum(dim=-1, keepdim=True)
        mixed[:, rows] = torch.where(total > 0, weights @ x / total.clamp(min=1e-30), x[:, rows])
    return mixed


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


def nearest(x: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most alike memory row of every row: similarity (P,) float32 and index (P,) int64.

    Args:
        x: (P, D); memory: (M, D). Alike by dot product, so for cosines give unit rows.

    Of equals the smallest index is taken; with an empty memory similarities are -inf and indices -1. Never P x M.
    """
    similarity = torch.full((len(x),), -torch.inf, device=x.device)
    index = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    for start in range(0, len(x), MEMORY_QUERIES):
        rows = slice(start, start + MEMORY_QUERIES)
        for first in range(0, len(memory), MEMORY_ROWS):
            best, which = (x[rows] @ memory[first : first + MEMORY_ROWS].mT).max(dim=1)
            better = best > similarity[rows]
            similarity[rows] = torch.where(better, best.float(), similarity[rows])
            index[rows] = torch.where(better, which + first, index[rows])
    return similarity, index
