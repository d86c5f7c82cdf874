"""Masks mapped exactly to a tower's tokens: one small matrix per axis, no thresholds.

There are two pairs of matrices, for two questions. "Which tokens make up the mean of the upsampled features over this
mask?" is answered by the transposed decoding plan (`DecodePlan`): its rows sum to 1, so a mask of one pixel has weight
one. "How much of this token does the mask cover?" is answered by the area that pixel and token share (`token_plan`).
Shape letters: R masks, H/W pixels of the photo, Y/X tokens of all windows, n windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from densevl.inference.windows import AxisWindows, WindowGrid
from densevl.proposals.base import Proposals
from densevl.proposals.packing import unpack_rows

TOGETHER = 2**19  # mask pixels unpacked at once; more do not fit in a CPU's cache
TIE = 1e-4
"""Shares closer than this, relative to them, count as equal: which is larger in float32 depends on the machine."""


def pull(masks: Proposals, rows_HY: torch.Tensor, cols_WX: torch.Tensor) -> torch.Tensor:
    """Sum over pixels of mask[y, x] rows[y, i] cols[x, j]: (R, Y, X) float32.

    Masks of a small photo are processed together, those of a large one one by one within their boxes.

    Args:
        masks: R masks of an (H, W) photo. rows_HY, cols_WX: float32, a row per pixel of the photo, a column per token.
    """
    pulled = torch.zeros(len(masks), rows_HY.shape[1], cols_WX.shape[1])
    rows_HY, cols_WX = rows_HY.cpu(), cols_WX.cpu()
    step = TOGETHER // max(1, masks.size[0] * masks.size[1])
    if step > 1:
        rows_per_token = _whole_rows(rows_HY)
        for start in range(0, len(masks), step):
            part = slice(start, start + step)
            inside = _floats(masks.select(part).masks())
            # rows first: pixels of a row are contiguous
            fewer = inside.unflatten(1, (-1, rows_per_token)).mean(dim=2) if rows_per_token else rows_HY.mT @ inside
            pulled[part] = fewer @ cols_WX
        return pulled
    for index, (x0, _, x1, _) in enumerate(pixel_boxes(masks)):
        top, lines = unpack_rows(masks.packed[index], masks.size)
        if len(lines):
            pulled[index] = rows_HY[top : top + len(lines)].mT @ _floats(lines[:, x0:x1]) @ cols_WX[x0:x1]
    return pulled


def _whole_rows(rows_HY: torch.Tensor) -> int | None:
    """Pixel rows per token if each token averages rows of its own, as in a photo of the tower's size."""
    each, rest = divmod(len(rows_HY), rows_HY.shape[1])
    alone = torch.eye(rows_HY.shape[1]).repeat_interleave(each, dim=0) / max(1, each)
    return each if not rest and torch.equal(rows_HY, alone) else None


def _floats(masks: np.ndarray) -> torch.Tensor:
    """Convert bool to float32; torch converts bytes eight times faster than bools."""
    return torch.from_numpy(masks.view(np.uint8)).to(torch.float32)


def pixel_boxes(masks: Proposals) -> list[tuple[int, int, int, int]]:
    """x0, y0, x1, y1 of each mask in whole pixels, the last two exclusive; empty masks have empty boxes."""
    height, width = masks.size
    boxes = np.asarray(masks.boxes, dtype=float).reshape(-1, 4)
    low = np.floor(boxes[:, :2]).clip(0, (width, height)).astype(int)
    high = np.ceil(boxes[:, 2:]).clip(0, (width, height)).astype(int)
    return [(int(x0), int(y0), int(x1), int(y1)) for (x0, y0), (x1, y1) in zip(low, high, strict=True)]


def token_plan(windows: WindowGrid, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices (H, Y) and (W, X) that turn masks of an (H, W) photo into the covered share (0..1) of each token."""
    height, width = size
    return _axis(windows.rows, height), _axis(windows.cols, width)


@lru_cache(maxsize=16)
def _axis(axis: AxisWindows, size: int) -> torch.Tensor:
    """The fraction of each token that each pixel covers, (size, windows * tokens) float32."""
    scale = size / axis.length
    token = axis.span / axis.tokens * scale
    first = (np.array(axis.starts) - axis.before - axis.margin[0]) * scale
    start = (first[:, None] + np.arange(axis.tokens) * token).ravel()
    pixel = np.arange(size)[:, None]
    shared = np.minimum(pixel + 1, start + token) - np.maximum(pixel, start)
    shared[shared < 1e-6] = 0  # touching borders overlap only by rounding
    return torch.from_numpy((shared / token).astype(np.float32))


def reaches(share: torch.Tensor, bar: torch.Tensor | float) -> torch.Tensor:
    """Whether shares, none negative, are at least as large as `bar`; near-equal ones count on every machine (`TIE`)."""
    return share >= bar * (1 - TIE)


def window_areas(masks: Proposals, windows: WindowGrid) -> torch.Tensor:
    """How much of each mask each window sees, in tokens: (n, R) float32."""
    rows_HY, cols_WX = token_plan(windows, masks.size)
    rows = rows_HY.unflatten(1, (-1, windows.rows.tokens)).sum(dim=2)
    cols = cols_WX.unflatten(1, (-1, windows.cols.tokens)).sum(dim=2)
    return pull(masks, rows, cols).flatten(1).mT.contiguous()


def window_cover(masks: Proposals, windows: WindowGrid, which: int, chosen: Sequence[int]) -> torch.Tensor:
    """The covered share of each token of one window, for some of the masks: (len(chosen), h * w) float32.

    Args:
        which: index of the window in `windows.corners`. chosen: indices of masks.
    """
    h, w = windows.rows.tokens, windows.cols.tokens
    row, col = divmod(which, len(windows.cols.starts))
    rows_HY, cols_WX = token_plan(windows, masks.size)
    few = masks.select(list(chosen))
    return pull(few, rows_HY[:, row * h : (row + 1) * h], cols_WX[:, col * w : (col + 1) * w]).flatten(1)
