"""Label maps of images that do not fit in memory: block by block of output rows, equal to those of the whole image.

A pixel row touches only the windows over it, and windows are run in the order and in the passes of `window_scores`. So
the scores of a few rows of windows are held at a time: memory grows with the width of an image and the number of texts,
not with its height.
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
"""Output pixels decided at once: whole tiles of `dense_decode`, so that its sums are those of the whole image."""
LEAST_ROWS = 16
HELD = 2**26  # bytes of scores that may be held; blocks get lower where a row of windows takes much


def window_rows(
    read: Rows,
    windows: WindowGrid,
    normalize: Callable[[np.ndarray], torch.Tensor],
    score: Callable[[torch.Tensor], torch.Tensor],
    batch: int,
    first: int = 0,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Score an image, one row of windows after the other: its number, and scores (h, columns * w, T).

    Args:
        read: rows of the image, asked for from top to bottom. windows: the grid on it.
        normalize: uint8 RGB (H, W, 3) to float (3, H, W). score: windows (n, 3, H, W) to scores (n, h, w, T).
        batch: windows a pass. first: row of windows to begin with.
    """
    corners, across, band = windows.corners, len(windows.cols.starts), Band(read)
    parts: list[torch.Tensor] = []
    for start in range(first * across // batch * batch, len(corners), batch):  # passes are those of a whole run
        cut = [_window(band, windows, normalize, *corner) for corner in corners[start : start + batch]]
        for number, part in enumerate(score(torch.stack(cut)), start):
            if number // across >= first:
                parts.append(part)
            if len(parts) == across:
                yield number // across, torch.cat(parts, dim=1)
                parts = []


def block_rows(windows: WindowGrid, height: int, texts: int) -> int:
    """Rows of output pixels, of `height` in all, that are decided at once: `ROWS`, or fewer where scores are large."""
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
    """Decide an image block by block, each of `rows` rows: its first row, labels (rows, W) and confidence (rows, W).

    Args:
        scored: what `window_rows` gives from a row of windows on. windows: their grid, with the tokens of
            the scores. size: (H, W) of the output.
        decide: scores (1, Y, X, T) and their plan to labels. start: output row to begin with, a multiple of `rows`.
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
    """Runs of output columns, the tokens of the windows over them, and the plan from these to those."""
    found = []
    for left in range(0, width, COLUMNS):
        pixels = slice(left, min(left + COLUMNS, width))
        touched, plan = windows.block(False, width, pixels.start, pixels.stop)
        found.append((pixels, slice(touched[0] * windows.cols.tokens, (touched[-1] + 1) * windows.cols.tokens), plan))
    return found


def _window(
    band: Band, windows: WindowGrid, normalize: Callable[[np.ndarray], torch.Tensor], top: int, left: int
) -> torch.Tensor:
    """One window, as `WindowGrid.batches` cuts it: (3, h, w)."""
    rows, above, below = _inside(windows.rows, top)
    columns, before, after = _inside(windows.cols, left)
    return F.pad(normalize(band(rows.start, rows.stop)[:, columns]), (before, after, above, below))


def _inside(axis: AxisWindows, start: int) -> tuple[slice, int, int]:
    """The pixels of the image in a window that begins at `start`, and the padding before and after them."""
    first, last = start - axis.margin[0], start - axis.margin[0] + axis.crop
    pixels = slice(max(0, first), min(axis.length, last))
    return pixels, axis.before + pixels.start - first, axis.after + last - pixels.stop
