"""Label maps of images that do not fit in memory, computed in blocks of output rows and equal to those of the whole.

A row of pixels depends only on the windows over it, and windows run in the order and passes of `window_scores`. So only
the scores of a few rows of windows are held: memory grows with the width of an image and the number of texts, not with
its height.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn import functional as F

from densevl.images.resizing import Band, Rows
from densevl.inference.decoding import LabelMap
from densevl.inference.windows import AxisWindows, WindowGrid
from densevl.kernels import AxisPlan, DecodePlan

ROWS, COLUMNS = 256, 2048
"""Output pixels decided at once: whole tiles of `dense_decode`, so that its sums equal those of the whole image."""
LEAST_ROWS = 16
HELD = 2**26  # limit for scores in bytes; blocks have fewer rows if a row of windows is large


def window_rows(
    read: Rows,
    windows: WindowGrid,
    normalize: Callable[[np.ndarray], torch.Tensor],
    score: Callable[[torch.Tensor], torch.Tensor],
    batch: int,
    first: int = 0,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Score an image, one row of windows after another: yield its index and scores (h, columns * w, T).

    Args:
        read: gives rows of the image, from top to bottom. windows: the grid over it.
        normalize: uint8 RGB (H, W, 3) to float (3, H, W). score: windows (n, 3, H, W) to scores (n, h, w, T).
        batch: windows per pass. first: row of windows to start with.
    """
    corners, across, band = windows.corners, len(windows.cols.starts), Band(read)
    parts: list[torch.Tensor] = []
    for start in range(first * across // batch * batch, len(corners), batch):  # the same passes as in a whole run
        cut = [_window(band, windows, normalize, *corner) for corner in corners[start : start + batch]]
        for number, part in enumerate(score(torch.stack(cut)), start):
            if number // across >= first:
                parts.append(part)
            if len(parts) == across:
                yield number // across, torch.cat(parts, dim=1)
                parts = []


def block_rows(windows: WindowGrid, height: int, texts: int) -> int:
    """Return how many of `height` rows of output pixels are decided at once: `ROWS`, or fewer if scores are large."""
    each = windows.rows.tokens * windows.cols.tokens * len(windows.cols.starts) * texts * 4
    rows = ROWS
    while rows > LEAST_ROWS:
        middle = max(0, (height - rows) // 2)
        if each * len(windows.block(True, height, middle, min(middle + rows, height))[0]) <= HELD:
            break
        rows //= 2
    return rows


def decoded_blocks(
    scored: Callable[[int], Iterator[tuple[int, torch.Tensor]]],
    windows: WindowGrid,
    size: tuple[int, int],
    decide: Callable[[torch.Tensor, DecodePlan], LabelMap],
    rows: int,
    start: int = 0,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Decide an image in blocks of `rows` rows: yield the first row, labels (rows, W) and confidence (rows, W).

    Args:
        scored: gives the output of `window_rows` from a row of windows on. windows: their grid, with the tokens of the
            scores. size: (H, W) of the output.
        decide: scores (1, Y, X, T) and their plan to labels. start: output row to start with, a multiple of `rows`.
    """
    height, width = size
    if start >= height:
        return
    coming = scored(windows.block(True, height, start, min(start + rows, height))[0][0])
    held: dict[int, torch.Tensor] = {}
    columns: list[tuple[slice, slice, AxisPlan]] = []
    for top in range(start, height, rows):
        bottom = min(top + rows, height)
        touched, down = windows.block(True, height, top, bottom)
        held = {number: scores for number, scores in held.items() if number >= touched[0]}
        while touched[-1] not in held:
            number, scores = next(coming)
            held[number] = scores
        columns = columns or _columns(windows, width)
        labels, confidence = np.empty((bottom - top, width), np.int16), np.empty((bottom - top, width), np.float32)
        for pixels, tokens, along in columns:
            part = torch.cat([held[number][:, tokens] for number in touched])[None]
            found = decide(part, DecodePlan(down, along))
            labels[:, pixels] = found.labels[0].cpu().numpy()
            confidence[:, pixels] = found.confidence[0].cpu().numpy()
        yield top, labels, confidence


def _columns(windows: WindowGrid, width: int) -> list[tuple[slice, slice, AxisPlan]]:
    """Return runs of output columns, the tokens of the windows over them, and the plan from tokens to columns."""
    found = []
    for left in range(0, width, COLUMNS):
        pixels = slice(left, min(left + COLUMNS, width))
        touched, plan = windows.block(False, width, pixels.start, pixels.stop)
        found.append((pixels, slice(touched[0] * windows.cols.tokens, (touched[-1] + 1) * windows.cols.tokens), plan))
    return found


def _window(
    band: Band, windows: WindowGrid, normalize: Callable[[np.ndarray], torch.Tensor], top: int, left: int
) -> torch.Tensor:
    """Return one window as cut by `WindowGrid.batches`: (3, h, w)."""
    rows, above, below = _inside(windows.rows, top)
    columns, before, after = _inside(windows.cols, left)
    return F.pad(normalize(band(rows.start, rows.stop)[:, columns]), (before, after, above, below))


def _inside(axis: AxisWindows, start: int) -> tuple[slice, int, int]:
    """Return the pixels of the image in a window that starts at `start`, and the padding before and after them."""
    first, last = start - axis.margin[0], start - axis.margin[0] + axis.crop
    pixels = slice(max(0, first), min(axis.length, last))
    return pixels, axis.before + pixels.start - first, axis.after + last - pixels.stop
