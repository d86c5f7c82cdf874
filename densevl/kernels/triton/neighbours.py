# mypy: disallow-untyped-defs=False
"""The most alike row of a memory: a matrix product whose result is reduced to a running best, never written.

The memory is split over programs; torch joins the splits. The state is kept per row and not per entry of the tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from densevl.kernels.triton.configs import padded, tile

PROGRAMS = 264  # two for each of an H100's processors


@triton.jit
def nearest_kernel(
    x,
    memory,
    similarity,
    index,
    x_row,
    memory_row,
    rows,
    remembered,
    width,
    share,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    lane = tl.arange(0, STEP)
    own = x + row.to(tl.int64)[:, None] * x_row + lane[None, :]
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    where = tl.zeros((ROWS,), tl.int32)
    last = tl.minimum((split + 1) * share, remembered)
    for first in range(split * share, last, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        other = memory + column.to(tl.int64)[:, None] * memory_row + lane[None, :]
        alike = tl.zeros((ROWS, COLUMNS), tl.float32)
        for at in range(0, width, STEP):
            own_real = (row < rows)[:, None]
            other_real = (column < last)[:, None]
            a = tl.load(own + at, mask=own_real, other=0.0)
            b = tl.load(other + at, mask=other_real, other=0.0)
            alike = tl.dot(a, tl.trans(b), alike, input_precision="ieee")
        alike = tl.where((column < last)[None, :], alike, float("-inf"))
        most = tl.max(alike, axis=1)
        chosen = tl.min(tl.where(alike == most[:, None], column[None, :], remembered), axis=1)
        better = most > best  # the first of equals stays
        best = tl.where(better, most, best)
        where = tl.where(better, chosen, where)
    tl.store(similarity + split * rows + row, best, mask=row < rows)
    tl.store(index + split * rows + row, where, mask=row < rows)


@torch.library.custom_op("densevl::nearest", mutates_args=())
def nearest(x: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel: as `kernels.nearest`."""
    config = tile("nearest", "", x.device)
    rows, columns, step = config.block
    x, memory = padded(x, step), padded(memory, step)  # a copy of the memory unless its width is a multiple of 64
    blocks, tiles = -(-len(x) // rows), -(-len(memory) // columns)
    per_split = -(-tiles // max(1, min(tiles, PROGRAMS // blocks)))
    splits = -(-tiles // per_split)
    similarity = torch.empty(splits, len(x), device=x.device)
    index = torch.empty(splits, len(x), dtype=torch.int32, device=x.device)
    nearest_kernel[(blocks, splits)](
        x,
        memory,
        similarity,
        index,
        x.stride(0),
        memory.stride(0),
        len(x),
        len(memory),
        x.shape[1],
        per_split * columns,
        ROWS=rows,
        COLUMNS=columns,
        STEP=step,
        **config.options,
    )
    best, split = similarity.max(dim=0)  # the first of equals
    return best, index.gather(0, split[None])[0].long()


@nearest.register_fake
def _(x, memory):
    return x.new_empty(x.shape[0], dtype=torch.float32), x.new_empty(x.shape[0], dtype=torch.int64)
