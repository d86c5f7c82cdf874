"""Decoding plans: upsampling windows, averaging their overlap and the final resize as one small matrix per axis.

All three steps are linear and separable, and the overlap count of a grid of windows is an outer product, so along one
axis the whole chain is  A = R . diag(1/count) . [U_1 ... U_k]  of shape (output pixels, windows * tokens), where U_i
upsamples the tokens of window i to its pixels and R resizes the canvas. Rows are non-negative and sum to 1.
Bilinear means align_corners=False, as torch and OpenCV have it. Built in float64, kept in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch


def bilinear_matrix(size: int, source: int) -> np.ndarray:
    """(size, source) float64: row i holds the bilinear weights of output i; no antialiasing when shrinking."""
    at = np.clip((np.arange(size) + 0.5) * source / size - 0.5, 0, None)
    low = np.minimum(np.floor(at).astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    matrix = np.zeros((size, source))
    np.add.at(matrix, (np.arange(size), low), 1 - (at - low))
    np.add.at(matrix, (np.arange(size), high), at - low)
    return matrix


KEPT_PLANS = 8  # a plan of a 12-megapixel photo is a few MB an axis


@dataclass(frozen=True)
class Block:
    """Some output pixels of an axis, the tokens they touch, and the weights between the two (pixels, tokens)."""

    pixels: slice
    touched: slice | torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, eq=False)
class AxisPlan:
    """One axis of a plan: `matrix` (output pixels, windows * tokens) float32."""

    matrix: torch.Tensor

    def blocks(self, step: int) -> Iterator[Block]:
        """Runs of `step` output pixels, each with only the token columns it touches."""
        for start in range(0, len(self.matrix), step):
            pixels = slice(start, min(start + step, len(self.matrix)))
            touched = self.matrix[pixels].any(dim=0).nonzero().flatten()
            yield Block(pixels, touched, self.matrix[pixels][:, touched].contiguous())


@dataclass(frozen=True, eq=False)
class DecodePlan:
    """Both axes: window scores (B, Y, X, T) to pixels, S[t, y, x] = sum rows[y, i] cols[x, j] scores[i, j, t].

    Windows are laid as a block matrix: row block = window row, column block = window column.
    """

    rows: AxisPlan
    cols: AxisPlan

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the output."""
        return len(self.rows.matrix), len(self.cols.matrix)


@lru_cache(maxsize=KEPT_PLANS)
def pixel_axis_plan(
    starts: tuple[int, ...], crop: int, before: int, after: int, tokens: int, length: int, size: int
) -> AxisPlan:
    """Plan one axis whose windows are upsampled first and averaged at pixels.

    Args:
        starts: first pixel of each window on the canvas; crop: pixels of a window that lie on the canvas.
        before, after: pixels of padding a window carries outside the canvas; its tokens span all of it.
        tokens: tokens per window; length: pixels of the canvas; size: pixels of the output.
    """
    upsample = bilinear_matrix(before + crop + after, tokens)[before : before + crop]
    canvas = np.zeros((length, len(starts) * tokens))
    count = np.zeros((length, 1))
    for i, start in enumerate(starts):
        canvas[start : start + crop, i * tokens : (i + 1) * tokens] = upsample
        count[start : start + crop] += 1
    canvas /= count
    matrix = canvas if size == length else bilinear_matrix(size, length) @ canvas
    return AxisPlan(torch.from_numpy(matrix.astype(np.float32)))


@lru_cache(maxsize=KEPT_PLANS)
def patch_axis_plan(
    starts: tuple[int, ...], patch: int, tokens: int, margin: tuple[int, int], length: int, size: int
) -> AxisPlan:
    """Plan one axis whose tokens are averaged on one patch grid, which is upsampled once.

    Args:
        starts: first pixel of each window, multiples of `patch`; tokens: per window; margin: pixels before and after
            the image that make it whole patches; length: pixels of the image; size: pixels of the output.
    """
    total = (sum(margin) + length) // patch
    grid = np.zeros((total, len(starts) * tokens))
    for i, start in enumerate(starts):
        rows = start // patch + np.arange(tokens)
        grid[rows, i * tokens + np.arange(tokens)] = 1
    grid /= grid.sum(axis=1, keepdims=True)
    canvas = bilinear_matrix(total * patch, total)[margin[0] : margin[0] + length] @ grid
    matrix = canvas if size == length else bilinear_matrix(size, length) @ canvas
    return AxisPlan(torch.from_numpy(matrix.astype(np.float32)))


@dataclass(frozen=True, eq=False)
class AxisTiles:
    """One axis of a plan in tiles of `step` output pixels, in the form a kernel reads without masks.

    Attributes:
        index: (tiles, taps) int32, the tokens a tile touches, padded with token 0.
        weights: (tiles * step, taps) float32, a row per output pixel; 0 for padding and past the last pixel.
    """

    index: torch.Tensor
    weights: torch.Tensor

    @property
    def taps(self) -> int:
        """Tokens per tile, a power of two."""
        return self.index.shape[1]


@lru_cache(maxsize=4 * KEPT_PLANS)
def axis_tiles(plan: AxisPlan, step: int, least: int = 1) -> AxisTiles:
    """Cut an axis into tiles of `step` pixels with at least `least` taps each, the same number for all."""
    blocks = list(plan.blocks(step))
    widest = max(least, *(block.weights.shape[1] for block in blocks))
    taps = 1 << (widest - 1).bit_length()
    index = torch.zeros(len(blocks), taps, dtype=torch.int32)
    weights = torch.zeros(len(blocks), step, taps)
    for i, block in enumerate(blocks):
        pixels, touched = block.weights.shape
        index[i, :touched] = torch.as_tensor(block.touched, dtype=torch.int32)
        weights[i, :pixels, :touched] = block.weights
    return AxisTiles(index, weights.flatten(0, 1))


@dataclass(frozen=True, eq=False)
class Tiling:
    """Both axes of a plan in tiles of `shape` = (rows, columns) pixels, 64 in all."""

    shape: tuple[int, int]
    rows: AxisTiles
    cols: AxisTiles

    @property
    def taps(self) -> int:
        """Tokens that a tile touches, padding included."""
        return self.rows.taps * self.cols.taps


TILE_SHAPES = ((4, 16), (8, 8))
LEAST_TAPS = 16  # a tensor core's inner dimension


@lru_cache(maxsize=4 * KEPT_PLANS)
def decode_tiling(plan: DecodePlan) -> Tiling:
    """The tiling of a plan that touches the fewest tokens per tile; the flat shape among equals."""
    found = []
    for shape in TILE_SHAPES:
        rows = axis_tiles(plan.rows, shape[0])
        cols = axis_tiles(plan.cols, shape[1], max(1, LEAST_TAPS // rows.taps))
        found.append(Tiling(shape, rows, cols))
    return min(found, key=lambda tiling: tiling.taps)
