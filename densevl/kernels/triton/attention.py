# mypy: disallow-untyped-defs=False
"""Flash attention whose bias is computed from grid coordinates, so no N x N tensor exists.

Keys are walked by rows of the grid, never by flat index: within a tile the horizontal part of the bias is the same at
every step and stays in registers, and the vertical part is one number per query and grid row. Prefix keys (CLS,
registers) have no place on the grid; they seed the running softmax one by one. A head width of 80 is taken as 64 + 16.
All arithmetic outside the matrix products is float32, and logits are in log2 units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from densevl.kernels.triton.configs import dense, head_parts, tile, whole

LOG2E = tl.constexpr(1.4426950408889634)
NO_BIAS, GAUSSIAN, RELATIVE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def load_rows(base, rows, stride, valid, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of a matrix, columns FIRST to FIRST + WIDTH; rows that are not valid are 0."""
    at = rows[:, None] * stride + FIRST + tl.arange(0, WIDTH)[None, :]
    return tl.load(base + at, mask=valid[:, None], other=0.0)


@triton.jit
def attention_kernel(
    q,
    k,
    v,
    rel,
    out,
    lse,
    heads,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    out_batch,
    out_head,
    out_row,
    tokens,
    grid_h,
    grid_w,
    prefix,
    key_prefix,
    scale,
    decay,
    D0: tl.constexpr,
    D1: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    WANT_LSE: tl.constexpr,
):
    pair = tl.program_id(1).to(tl.int64)
    batch, head = pair // heads, pair % heads
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    real = query < tokens
    query_y = (query - prefix) // grid_w
    query_x = (query - prefix) % grid_w
    q0 = load_rows(q, query, q_row, real, 0, D0)
    if D1 > 0:
        q1 = load_rows(q, query, q_row, real, D0, D1)

    most = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc0 = tl.zeros((QUERIES, D0), tl.float32)
    if D1 > 0:
        acc1 = tl.zeros((QUERIES, D1), tl.float32)

    # Relative positions are for grids without a prefix; the code is left out for them, it would cost registers.
    if BIAS != RELATIVE:
        for early in range(0, key_prefix):
            lane0 = tl.arange(0, D0)
            alone = tl.sum(q0.to(tl.float32) * tl.load(k + early * k_row + lane0).to(tl.float32)[None, :], axis=1)
            if D1 > 0:
                lane1 = D0 + tl.arange(0, D1)
                alone += tl.sum(q1.to(tl.float32) * tl.load(k + early * k_row + lane1).to(tl.float32)[None, :], axis=1)
            alone *= scale * LOG2E
            top = tl.maximum(most, alone)
            fade = tl.exp2(most - top)
            weight = tl.exp2(alone - top)
            value = tl.load(v + early * v_row + lane0).to(tl.float32)
            acc0 = acc0 * fade[:, None] + weight[:, None] * value[None, :]
            if D1 > 0:
                value1 = tl.load(v + early * v_row + lane1).to(tl.float32)
                acc1 = acc1 * fade[:, None] + weight[:, None] * value1[None, :]
            total = total * fade + weight
            most = top

    slot = tl.arange(0, ROWS * COLUMNS)
    if BIAS == RELATIVE:
        rel += (pair * tokens + query) * (grid_h + grid_w)
    for first_x in range(0, grid_w, COLUMNS):
        x = first_x + slot % COLUMNS
        if BIAS == GAUSSIAN:
            step = (query_x[:, None] - x[None, :]).to(tl.float32)
            # A prefix query has no neighbourhood.
            across = tl.where((query >= prefix)[:, None], tl.exp2(-step * step * decay) * LOG2E, 0.0)
        if BIAS == RELATIVE:
            wanted = real[:, None] & (x < grid_w)[None, :]
            across = tl.load(rel[:, None] + grid_h + x[None, :], mask=wanted, other=0.0).to(tl.float32) * LOG2E
        for first_y in range(0, grid_h, ROWS):
            y = first_y + slot // COLUMNS
            valid = (x < grid_w) & (y < grid_h)
            key = key_prefix + y * grid_w + x
            logits = tl.dot(q0, tl.trans(load_rows(k, key, k_row, valid, 0, D0)), input_precision="ieee")
            if D1 > 0:
                part = tl.trans(load_rows(k, key, k_row, valid, D0, D1))
                logits = tl.dot(q1, part, logits, input_precision="ieee")
            logits *= scale * LOG2E
            if BIAS == GAUSSIAN:
                near = (query_y - first_y).to(tl.float32)
                down = tl.exp2(-near * near * decay)[:, None]
                if ROWS == 2:
                    next_row = tl.exp2(-(near - 1) * (near - 1) * decay)[:, None]
                    down = tl.where((slot < COLUMNS)[None, :], down, next_row)
                logits += across * down
            if BIAS == RELATIVE:  # ROWS is 1
                down = tl.load(rel + first_y, mask=real, other=0.0).to(tl.float32)
                logits += across + down[:, None] * LOG2E
            logits = tl.where(valid[None, :], logits, float("-inf"))
            higher = tl.maximum(most, tl.max(logits, axis=1))
            keep = tl.exp2(most - higher)
            p = tl.exp2(logits - higher[:, None])
            total = total * keep + tl.sum(p, axis=1)
            most = higher
            v0 = load_rows(v, key, v_row, valid, 0, D0)
            acc0 = tl.dot(p.to(v0.dtype), v0, acc0 * keep[:, None], input_precision="ieee")
            if D1 > 0:
                v1 = load_rows(v, key, v_row, valid, D0, D1)
                acc1 = tl.dot(p.to(v1.dtype), v1, acc1 * keep[:, None], input_precision="ieee")

    out += batch * out_batch + head * out_head
    rows = out + query[:, None] * out_row
    tl.store(rows + tl.arange(0, D0)[None, :], (acc0 / total[:, None]).to(out.dtype.element_ty), mask=real[:, None])
    if D1 > 0:
        lanes = D0 + tl.arange(0, D1)[None, :]
        tl.store(rows + lanes, (acc1 / total[:, None]).to(out.dtype.element_ty), mask=real[:, None])
    if WANT_LSE:
        tl.store(lse + pair * tokens + query, most + tl.log2(total), mask=real)


@torch.library.custom_op("densevl::grid_attention", mutates_args=())
def grid_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid: Sequence[int],
    prefix: int,
    std: float | None,
    scale: float | None,
    rel: torch.Tensor | None,
    want_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel: what `kernels.grid_attention` returns with `want_lse`; without, the second is empty."""
    batch, heads, tokens, width = q.shape
    q, k, v = dense(q), dense(k), dense(v)
    out, lse = _results(q, want_lse)
    relative = None if rel is None else whole(rel)
    grid_h, grid_w = grid
    prefix_keys = k.shape[2] - grid_h * grid_w
    variant = ("rel-" if std is None else "") + ("narrow" if grid_w <= 32 else "wide")
    if std is None and rel is None:
        grid_h, grid_w, variant = grid_h * grid_w, 1, "plain"  # nothing depends on coordinates: a flat walk
    config = tile("attention", variant, q.device, width)
    queries, rows, columns = config.block
    first, second = head_parts(width)
    attention_kernel[(-(-tokens // queries), batch * heads)](
        q,
        k,
        v,
        q if relative is None else relative,
        out,
        lse if want_lse else out,
        heads,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *out.stride()[:3],
        tokens,
        grid_h,
        grid_w,
        prefix,
        prefix_keys,
        width**-0.5 if scale is None else scale,
        0.0 if std is None else LOG2E.value / (2 * std * std),
        D0=first,
        D1=second,
        QUERIES=queries,
        ROWS=rows,
        COLUMNS=columns,
        BIAS=(GAUSSIAN if std is not None else NO_BIAS if rel is None else RELATIVE).value,
        WANT_LSE=want_lse,
        **config.options,
    )
    return out, lse


def _results(q: torch.Tensor, want_lse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for the attention, in the order that the output projection reads, and for the logsumexp, if wanted."""
    batch, heads, tokens, width = q.shape
    out = q.new_empty(batch, tokens, heads, width).transpose(1, 2)
    return out, q.new_empty((batch, heads, tokens) if want_lse else 0, dtype=torch.float32)


@grid_attention.register_fake
def _(q, *rest):
    return _results(q, rest[-1])
