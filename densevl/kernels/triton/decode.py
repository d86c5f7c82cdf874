# mypy: disallow-untyped-defs=False
"""Decoding of window scores to labels: interpolation as a small matrix product, argmax and logsumexp on the way.

A program owns 64 pixels. Their weights over the K tokens they touch stay in registers while blocks of queries pass by;
every (pixel, lane) keeps its own best, and lanes meet once, at the end. Scores and weights are split in two float16
parts each, and three products of parts reach float32's accuracy on tensor cores made for float16.

The logsumexp needs no running maximum: interpolation is convex, so the weighted mean of the tokens' own maxima bounds
every score of a pixel and is known before the loop.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from densevl.kernels.resample import Tiling, decode_tiling
from densevl.kernels.triton.configs import tile

LOG2E = tl.constexpr(1.4426950408889634)
PADDING = -6e4  # the score of queries that fill up the last block; float16 holds it


@triton.jit
def decode_kernel(
    high,
    low,
    top,
    index_y,
    weight_y,
    index_x,
    weight_x,
    label,
    score,
    lse,
    columns,
    tokens,
    queries,
    height,
    width,
    tiles_x,
    scale,
    TY: tl.constexpr,
    TX: tl.constexpr,
    KY: tl.constexpr,
    KX: tl.constexpr,
    BLOCK: tl.constexpr,
    WANT_LSE: tl.constexpr,
):
    tile_y = tl.program_id(0) // tiles_x
    tile_x = tl.program_id(0) % tiles_x
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.arange(0, TY * TX)
    tap = tl.arange(0, KY * KX)
    lane = tl.arange(0, BLOCK)
    y = tile_y * TY + pixel // TX
    x = tile_x * TX + pixel % TX

    # Tables are padded to whole tiles and taps, so these loads need no mask.
    weights = tl.load(weight_y + y[:, None] * KY + (tap // KX)[None, :])
    weights *= tl.load(weight_x + x[:, None] * KX + (tap % KX)[None, :])
    weights_high = weights.to(tl.float16)
    weights_low = (weights - weights_high.to(tl.float32)).to(tl.float16)
    token = tl.load(index_y + tile_y * KY + tap // KX) * columns + tl.load(index_x + tile_x * KX + tap % KX)
    first_token = image * tokens
    rows = ((first_token + token) * queries)[:, None] + lane[None, :]
    shift = tl.sum(weights * tl.load(top + first_token + token)[None, :], axis=1)

    best = tl.full((TY * TX, BLOCK), float("-inf"), tl.float32)
    where = tl.zeros((TY * TX, BLOCK), tl.int32)
    total = tl.zeros((TY * TX, BLOCK), tl.float32)
    for first in range(0, queries, BLOCK):
        part_high = tl.load(high + rows + first)
        part_low = tl.load(low + rows + first)
        scores = tl.dot(weights_high, part_high)
        scores = tl.dot(weights_low, part_high, scores)
        scores = tl.dot(weights_high, part_low, scores)
        better = scores > best
        best = tl.where(better, scores, best)
        where = tl.where(better, first, where)
        if WANT_LSE:
            total += tl.exp2((scores - shift[:, None]) * (scale * LOG2E))

    most = tl.max(best, axis=1)
    chosen = tl.min(tl.where(best == most[:, None], where + lane[None, :], queries), axis=1)
    inside = (y < height) & (x < width)
    at = image * height * width + y * width + x
    tl.store(label + at, chosen, mask=inside)
    tl.store(score + at, most, mask=inside)
    if WANT_LSE:
        # Never under the best score itself, so that a sum that underflowed is off by log T at most.
        value = tl.maximum(scale * shift + tl.log2(tl.sum(total, axis=1)) / LOG2E, scale * most)
        tl.store(lse + at, value, mask=inside)


@lru_cache(maxsize=8)
def _tables(tiling: Tiling, device: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(table.to(device) for table in tiling.tables)


@torch.library.custom_op("densevl::dense_decode", mutates_args=())
def dense_decode(
    scores: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the kernel: as `kernels.dense_decode`, with a plan's two matrices; without a scale the third is empty."""
    batch, token_rows, columns, queries = scores.shape
    label, score, lse = _results(scores, rows, cols, scale)
    tiling = decode_tiling(rows, cols)
    config = tile("decode", "best" if scale is None else "lse", scores.device)
    (block,) = config.block
    padded = -(-queries // block) * block
    filled = torch.nn.functional.pad(scores, (0, padded - queries), value=PADDING)
    high = filled.half()
    low = (filled - high.float()).half()
    top = scores.amax(dim=-1).contiguous()
    index_y, weight_y, index_x, weight_x = _tables(tiling, scores.device)
    tiles_y, tiles_x = index_y.shape[0], index_x.shape[0]
    decode_kernel[(tiles_y * tiles_x, batch)](
        high,
        low,
        top,
        index_y,
        weight_y,
        index_x,
        weight_x,
        label,
        score,
        score if scale is None else lse,
        columns,
        token_rows * columns,
        padded,
        rows.shape[0],
        cols.shape[0],
        tiles_x,
        scale or 0.0,
        TY=tiling.shape[0],
        TX=tiling.shape[1],
        KY=index_y.shape[1],
        KX=index_x.shape[1],
        BLOCK=block,
        WANT_LSE=scale is not None,
        **config.options,
    )
    return label, score, lse


def _results(
    scores: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = scores.shape[0], rows.shape[0], cols.shape[0]
    label, score = scores.new_empty(shape, dtype=torch.int32), scores.new_empty(shape)
    return label, score, scores.new_empty(0 if scale is None else shape)


@dense_decode.register_fake
def _(scores, rows, cols, scale):
    return _results(scores, rows, cols, scale)
