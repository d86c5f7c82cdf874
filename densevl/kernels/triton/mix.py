# mypy: disallow-untyped-defs=False
"""Attention probabilities of all heads, each cut by a per-row cosine threshold, summed into one map in one pass.

A tile is some queries by the columns of one grid row of keys. Every head adds exp2(logit - lse) where the heads' value
cosine passes the row's limit. A plain matrix product then applies the map, and rows are divided by their sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from densevl.kernels.common import mix_limit
from densevl.kernels.triton.attention import grid_attention, load_rows
from densevl.kernels.triton.configs import ENTRIES, dense, head_parts, tile, whole

LOG2E = tl.constexpr(1.4426950408889634)
# Keeps probabilities of 1 / N in float16's normal range; it cancels where rows are divided by their sums.
SPREAD = tl.constexpr(512.0)


@triton.jit
def mix_kernel(
    q,
    k,
    unit,
    rel,
    lse,
    limit,
    weights,
    heads,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    unit_batch,
    unit_head,
    unit_row,
    grid_h,
    grid_w,
    inner_h,
    inner_w,
    tiles_x,
    weights_row,
    scale,
    D0: tl.constexpr,
    D1: tl.constexpr,
    QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
    RELATIVE: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    inner = inner_h * inner_w
    tokens = grid_h * grid_w
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    real = row < inner
    query = row // inner_w * grid_w + row % inner_w
    y = tl.program_id(1) // tiles_x
    x = tl.program_id(1) % tiles_x * COLUMNS + tl.arange(0, COLUMNS)
    there = x < inner_w
    column = y * inner_w + x
    key = y * grid_w + x
    least = tl.load(limit + image * inner + row, mask=real, other=0.0)
    total = tl.zeros((QUERIES, COLUMNS), tl.float32)
    for head in range(0, heads):
        own = q + image * q_batch + head * q_head
        other = k + image * k_batch + head * k_head
        value = unit + image * unit_batch + head * unit_head
        logits = tl.dot(
            load_rows(own, query, q_row, real, 0, D0),
            tl.trans(load_rows(other, key, k_row, there, 0, D0)),
            input_precision="ieee",
        )
        cosines = tl.dot(
            load_rows(value, row, unit_row, real, 0, D0),
            tl.trans(load_rows(value, column, unit_row, there, 0, D0)),
            input_precision="ieee",
        )
        if D1 > 0:
            tail = tl.trans(load_rows(other, key, k_row, there, D0, D1))
            logits = tl.dot(load_rows(own, query, q_row, real, D0, D1), tail, logits, input_precision="ieee")
            tail = tl.trans(load_rows(value, column, unit_row, there, D0, D1))
            cosines = tl.dot(load_rows(value, row, unit_row, real, D0, D1), tail, cosines, input_precision="ieee")
        pair = image * heads + head
        logits = logits * (scale * LOG2E) - tl.load(lse + pair * tokens + query, mask=real, other=0.0)[:, None]
        if RELATIVE:
            terms = rel + (pair * tokens + query) * (grid_h + grid_w)
            down = tl.load(terms + y, mask=real, other=0.0).to(tl.float32)[:, None]
            both = real[:, None] & there[None, :]
            across = tl.load(terms[:, None] + grid_h + x[None, :], mask=both, other=0.0).to(tl.float32)
            logits += (down + across) * LOG2E
        total += tl.where(cosines > least[:, None], tl.exp2(logits), 0.0)
    to = weights + (image * inner + row)[:, None] * weights_row + column[None, :]
    tl.store(to, (total * SPREAD).to(weights.dtype.element_ty), mask=real[:, None] & there[None, :])


@torch.library.custom_op("densevl::affinity_mix", mutates_args=())
def affinity_mix(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    x: torch.Tensor,
    grid: Sequence[int],
    covered: Sequence[int],
    rel: torch.Tensor | None,
    factor: float,
    cap: float,
    negative: float | None,
) -> torch.Tensor:
    """Launch the kernel: as `kernels.affinity_mix`. Holds one n x n map."""
    batch, heads, _, width = q.shape
    inner = covered[0] * covered[1]
    q, k = dense(q), dense(k)
    rel = None if rel is None else whole(rel)
    _, lse = grid_attention(q, k, v, grid, 0, None, None, rel, True)
    corner = v.unflatten(2, tuple(grid))[:, :, : covered[0], : covered[1]].flatten(2, 3)
    unit = F.normalize(corner.float(), dim=-1)
    limit = mix_limit(unit, factor, cap, negative).contiguous()
    unit = dense(unit.to(q.dtype))
    weights = x.new_empty(batch, inner, -(-inner // ENTRIES) * ENTRIES)[..., :inner]
    # The larger tile starves its loads at 16 features and outgrows the shared memory at 128.
    config = tile("mix", "middle" if 32 <= width <= 80 else "other", q.device)
    queries, columns = config.block
    tiles_x = -(-covered[1] // columns)
    first, second = head_parts(width)
    mix_kernel[(-(-inner // queries), covered[0] * tiles_x, batch)](
        q,
        k,
        unit,
        q if rel is None else rel,
        lse,
        limit,
        weights,
        heads,
        *q.stride()[:3],
        *k.stride()[:3],
        *unit.stride()[:3],
        *grid,
        *covered,
        tiles_x,
        weights.stride(1),
        width**-0.5,
        D0=first,
        D1=second,
        QUERIES=queries,
        COLUMNS=columns,
        RELATIVE=rel is not None,
        **config.options,
    )
    total = weights.sum(dim=-1, keepdim=True, dtype=torch.float32)
    mixed = torch.matmul(weights, x).float() / total.clamp(min=1e-30)
    return torch.where(total > 0, mixed.to(x.dtype), x).contiguous()


@affinity_mix.register_fake
def _(q, k, v, x, *rest):
    return x.new_empty(x.shape)
