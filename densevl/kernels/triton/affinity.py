# mypy: disallow-untyped-defs=False
"""Cosine affinities with their threshold and weighting in the epilogue of a matrix product, a few rows at a time.

The rows held at once fit the second-level cache; a plain matrix product then applies them to the values. No running
maximum is kept: rows are unit vectors, so the largest logit of a row is on the diagonal and known beforehand.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from densevl.kernels.triton.configs import padded, tile

LOG2E = tl.constexpr(1.4426950408889634)
SOFTMAX, CUT, LINEAR = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
HELD_BYTES = 32 * 2**20  # of weights at once
COLUMNS_PADDED = 128  # whole tiles, so that stores are wide


@triton.jit
def affinity_kernel(
    x,
    weights,
    cut,
    x_batch,
    x_row,
    weights_batch,
    weights_row,
    first,
    last,
    tokens,
    width,
    gamma,
    floor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    RULE: tl.constexpr,
    FLOOR: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    x += image * x_batch
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = first + local
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    lane = tl.arange(0, STEP)
    own = x + row[:, None] * x_row + lane[None, :]
    other = x + column[:, None] * x_row + lane[None, :]
    cosines = tl.zeros((ROWS, COLUMNS), tl.float32)
    for at in range(0, width, STEP):
        own_real = (row < last)[:, None]
        other_real = (column < tokens)[:, None]
        a = tl.load(own + at, mask=own_real, other=0.0)
        b = tl.load(other + at, mask=other_real, other=0.0)
        cosines = tl.dot(a, tl.trans(b), cosines, input_precision="ieee")

    diagonal = row[:, None] == column[None, :]
    if FLOOR:
        cosines = tl.where(cosines >= floor, cosines, 0.0)
    weight = cosines
    if RULE != LINEAR:
        weight = tl.exp2((cosines - 1.0) * (gamma * LOG2E))
    if RULE == CUT:
        # Under the threshold a pair is left out; a token always keeps itself.
        weight = tl.where((cosines >= tl.load(cut + image)) | diagonal, weight, 0.0)
    # The buffer holds whole tiles; what lies past the last row and column is never read.
    to = weights + image * weights_batch + local[:, None] * weights_row + column[None, :]
    tl.store(to, weight.to(weights.dtype.element_ty))


@torch.library.custom_op("densevl::affinity_apply", mutates_args=())
def affinity_apply(
    x: torch.Tensor, v: torch.Tensor, cut: torch.Tensor | None, gamma: float, floor: float | None, linear: bool
) -> torch.Tensor:
    """Launch the kernel: as `kernels.affinity_apply`, with the threshold `cut` (B,) float32 its beta times the mean."""
    batch, tokens, _ = x.shape
    rule = LINEAR if linear else SOFTMAX if cut is None else CUT
    cut = x.new_zeros(batch, dtype=torch.float32) if cut is None else cut
    config = tile("affinity", "", x.device)
    rows, columns, step = config.block
    x = padded(x, step)
    side = -(-tokens // COLUMNS_PADDED) * COLUMNS_PADDED
    held = max(rows, HELD_BYTES // (2 * side * batch) // rows * rows)
    weights = x.new_empty(batch, min(held, side), side)
    out = v.new_empty(batch, tokens, v.shape[2])
    for first in range(0, tokens, held):
        last = min(first + held, tokens)
        affinity_kernel[(triton.cdiv(last - first, rows), side // columns, batch)](
            x,
            weights,
            cut,
            x.stride(0),
            x.stride(1),
            weights.stride(0),
            weights.stride(1),
            first,
            last,
            tokens,
            x.shape[2],
            gamma,
            floor or 0.0,
            ROWS=rows,
            COLUMNS=columns,
            STEP=step,
            RULE=rule.value,
            FLOOR=floor is not None,
            **config.options,
        )
        part = weights[:, : last - first, :tokens]
        # The sums are those of the rounded weights, so that rounding does not scale a row.
        total = part.sum(dim=-1, keepdim=True, dtype=torch.float32) + (1e-6 if linear else 0.0)
        out[:, first:last] = (torch.matmul(part, v).float() / total).to(v.dtype)
    return out


@affinity_apply.register_fake
def _(x, v, *rest):
    return v.new_empty(v.shape)
