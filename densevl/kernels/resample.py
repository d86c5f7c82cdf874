"""Decoding plans: upsampling windows, averaging their overlap and the final resize as one small matrix per axis.

All three steps are linear and separable, and the overlap count of a grid of windows is an outer product, so along one
axis the whole chain is  A = R . diag(1/count) . [U_1 ... U_k]  of shape (output pixels, windows * tokens), where U_i
upsamples the tokens of window i to its pixels and R resizes the canvas. Rows are non-negative and sum to 1.
Bilinear means align_corners=False, as torch and OpenCV have it. Computed in float64 a block of rows at a time, kept in
float32. A row depends on no other: a block of output pixels has the same rows, bit for bit, as the whole axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from densevl.kernels.dispatch import KernelError

KEPT_PLANS = 8  # a plan of a 12-megapixel photo is a few MB an axis
PLANNED_ROWS = 256  # rows computed at once, in float64
Rows = Callable[[np.ndarray], np.ndarray]  # rows of a matrix by their numbers


def _taps(rows: np.ndarray, size: int, source: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bilinear resampling of `source` entries to `size`: the two entries each output row reads, the second's share."""
    at = np.clip((rows + 0.5) * source / size - 0.5, 0, None)
    low = np.minimum(np.floor(at).astype(int), source - 1)
    return low, np.minimum(low + 1, source - 1), at - low


def bilinear_matrix(size: int, source: int, rows: np.ndarray | None = None) -> np.ndarray:
    """(size, source) float64: row i holds the bilinear weights of output i; no antialiasing when shrinking.

    Args:
        rows: the outputs whose rows are wanted, None for all.
    """
    rows = np.arange(size) if rows is None else rows
    low, high, share = _taps(rows, size, source)
    matrix = np.zeros((len(rows), source))
    each = np.arange(len(rows))
    np.add.at(matrix, (each, low), 1 - share)
    np.add.at(matrix, (each, high), share)
    return matrix


def _resampled(rows: np.ndarray, size: int, source: int, of: Rows) -> np.ndarray:
    """Rows of `bilinear_matrix(size, source) @ M`, from rows of M; no BLAS, whose rounding depends on its blocks."""
    if size == source and rows.dtype.kind == "i":
        return of(rows)
    low, high, share = _taps(rows, size, source)
    return (1 - share)[:, None] * of(low) + share[:, None] * of(high)


def _centres(rows: np.ndarray, size: int, source: int) -> np.ndarray:
    """Where the centres of outputs lie among `source` entries, fractions of an entry kept."""
    return np.clip((rows + 0.5) * source / size - 0.5, 0, source - 1)


def _read(rows: np.ndarray, size: int, source: int) -> np.ndarray:
    """The entries, in order, that those rows of `bilinear_matrix(size, source)` read with a weight above 0."""
    if size == source and rows.dtype.kind == "i":
        return rows
    low, high, share = _taps(rows, size, source)
    return np.unique(np.concatenate([low, high[share > 0]]))


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
    _kept: dict[int, list[Block]] = field(default_factory=dict, init=False, repr=False)

    def blocks(self, step: int) -> list[Block]:
        """Runs of `step` output pixels, each with only the token columns it touches.

        While a graph is captured it is one run that touches all: which ones do depends on values.
        """
        if torch.compiler.is_compiling():
            return [Block(slice(0, self.matrix.shape[0]), slice(0, self.matrix.shape[1]), self.matrix)]
        if step not in self._kept:
            self._kept[step] = _blocks(self.matrix, step)
        return self._kept[step]


def _blocks(matrix: torch.Tensor, step: int) -> list[Block]:
    blocks = []
    for start in range(0, matrix.shape[0], step):
        pixels = slice(start, min(start + step, matrix.shape[0]))
        touched = matrix[pixels].any(dim=0).nonzero().flatten()
        blocks.append(Block(pixels, touched, matrix[pixels][:, touched].contiguous()))
    return blocks


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
        return self.rows.matrix.shape[0], self.cols.matrix.shape[0]


def pixel_axis_block(
    starts: tuple[int, ...],
    crop: int,
    before: int,
    after: int,
    tokens: int,
    length: int,
    size: int,
    start: int,
    stop: int,
    centres: bool = False,
) -> tuple[tuple[int, ...], AxisPlan]:
    """Plan some output pixels of an axis whose windows are upsampled first and averaged at pixels.

    Args:
        starts: first pixel of each window on the canvas; crop: pixels of a window that lie on the canvas.
        before, after: pixels of padding a window carries outside the canvas; its tokens span all of it.
        tokens: tokens per window; length: pixels of the canvas; size: pixels of the output.
        start, stop: the output pixels that are wanted.
        centres: each output is read off the tokens at its centre, not off the pixels of the canvas beside it.

    Returns:
        The numbers of the windows these pixels touch, and the plan with the columns of those windows alone.

    Raises:
        KernelError: no pixels, or pixels outside the output.
    """
    rows = _wanted(start, stop, size)
    at = _centres(rows, size, length) if centres else rows
    windows = _touched(at if centres else _read(rows, size, length), np.array(starts), crop)

    def canvas(pixels: np.ndarray) -> np.ndarray:
        matrix, count = np.zeros((len(pixels), len(windows), tokens)), np.zeros((len(pixels), 1, 1))
        for i, window in enumerate(windows):
            inside = _within(pixels, starts[window], crop)
            own = pixels[inside] - starts[window] + before
            matrix[inside, i] = bilinear_matrix(before + crop + after, tokens, own)
            count[inside] += 1
        # A pixel outside these windows is read with weight 0, see `_resampled`.
        return (matrix / np.maximum(count, 1)).reshape(len(pixels), -1)

    return windows, _plan(canvas(at) if centres else _resampled(rows, size, length, canvas))


def patch_axis_block(
    starts: tuple[int, ...],
    patch: int,
    tokens: int,
    margin: tuple[int, int],
    length: int,
    size: int,
    start: int,
    stop: int,
    centres: bool = False,
) -> tuple[tuple[int, ...], AxisPlan]:
    """Plan some output pixels of an axis whose tokens are averaged on one patch grid, which is upsampled once.

    Args:
        starts: first pixel of each window, multiples of `patch`; tokens: per window; margin: pixels before and after
            the image that make it whole patches; length: pixels of the image; size: pixels of the output.
        start, stop, centres, and what is returned and raised: as `pixel_axis_block`.
    """
    rows, total = _wanted(start, stop, size), (sum(margin) + length) // patch
    at = _centres(rows, size, length) if centres else rows
    cells = _read((at if centres else _read(rows, size, length)) + margin[0], total * patch, total)
    firsts = np.array(starts) // patch
    windows = _touched(cells, firsts, tokens)

    def grid(cells: np.ndarray) -> np.ndarray:
        matrix = np.zeros((len(cells), len(windows), tokens))
        for i, window in enumerate(windows):
            inside = _within(cells, firsts[window], tokens)
            matrix[inside, i, cells[inside] - firsts[window]] = 1
        return (matrix / np.maximum(matrix.sum(axis=(1, 2), keepdims=True), 1)).reshape(len(cells), -1)

    def canvas(pixels: np.ndarray) -> np.ndarray:
        return _resampled(pixels + margin[0], total * patch, total, grid)

    return windows, _plan(canvas(at) if centres else _resampled(rows, size, length, canvas))


def _wanted(start: int, stop: int, size: int) -> np.ndarray:
    if not 0 <= start < stop <= size:
        raise KernelError(f"pixels {start} to {stop} are not within an output of {size}")
    return np.arange(start, stop)


def _touched(used: np.ndarray, firsts: np.ndarray, span: int) -> tuple[int, ...]:
    """Windows of `span` entries that hold some of the used ones, which are in order."""
    held = np.searchsorted(used, firsts + span) > np.searchsorted(used, firsts)
    return tuple(np.flatnonzero(held).tolist())


def _within(entries: np.ndarray, first: int, span: int) -> np.ndarray:
    return np.flatnonzero((entries >= first) & (entries < first + span))


def _plan(matrix: np.ndarray) -> AxisPlan:
    return AxisPlan(torch.from_numpy(matrix.astype(np.float32)))


@lru_cache(maxsize=KEPT_PLANS)
def axis_plan(
    block: Callable[..., tuple[tuple[int, ...], AxisPlan]],
    geometry: tuple[Any, ...],
    tokens: int,
    size: int,
    centres: bool = False,
) -> AxisPlan:
    """The plan of a whole axis, all windows, `PLANNED_ROWS` output pixels at a time; 0 for tokens not touched.

    Args:
        block: `pixel_axis_block` or `patch_axis_block`. geometry: what it takes up to the length of the axis.
        centres: see there.
    """
    matrix = torch.zeros(size, len(geometry[0]), tokens)
    for start in range(0, size, PLANNED_ROWS):
        stop = min(start + PLANNED_ROWS, size)
        touched, part = block(*geometry, size, start, stop, centres)
        matrix[start:stop, list(touched)] = part.matrix.unflatten(1, (len(touched), tokens))
    return AxisPlan(matrix.flatten(1))


TILE_SHAPES = ((4, 16), (8, 8))
LEAST_TAPS = 16  # a tensor core's inner dimension


@dataclass(frozen=True, eq=False)
class Tiling:
    """A plan cut into tiles of 64 pixels, in the form a kernel reads without masks.

    Attributes:
        shape: rows and columns of a tile.
        tables: for rows, then for columns: index (tiles, taps) int32, the tokens a tile touches, padded with token 0 to
            a power of two; weights (pixels, taps) float32, whole tiles of them, 0 for padding and past the last pixel.
    """

    shape: tuple[int, int]
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

    @property
    def taps(self) -> int:
        """Tokens that a tile touches, padding included."""
        return self.tables[0].shape[1] * self.tables[2].shape[1]


@lru_cache(maxsize=4 * KEPT_PLANS)
def decode_tiling(rows: torch.Tensor, cols: torch.Tensor) -> Tiling:
    """The tiling of a plan's two matrices that touches the fewest tokens per tile; the flat shape among equals."""
    found = []
    for shape in TILE_SHAPES:
        down = _tables(rows, shape[0], 1)
        found.append(Tiling(shape, (*down, *_tables(cols, shape[1], max(1, LEAST_TAPS // down[0].shape[1])))))
    return min(found, key=lambda tiling: tiling.taps)


def _tables(matrix: torch.Tensor, step: int, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Index and weights of one axis in tiles of `step` pixels with at least `least` taps, as many for each."""
    blocks = _blocks(matrix, step)
    widest = max(least, *(block.weights.shape[1] for block in blocks))
    taps = 1 << (widest - 1).bit_length()
    index, weights = torch.zeros(len(blocks), taps, dtype=torch.int32), torch.zeros(len(blocks), step, taps)
    for i, block in enumerate(blocks):
        pixels, touched = block.weights.shape
        index[i, :touched] = torch.as_tensor(block.touched, dtype=torch.int32)
        weights[i, :pixels, :touched] = block.weights
    return index, weights.flatten(0, 1)
