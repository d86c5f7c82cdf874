"""Sliding windows: where they lie, cutting them out in batches, and the plan that puts their scores together again.

The papers' rule: n = max(L - crop + stride - 1, 0) // stride + 1 windows an axis, the last moved back flush with the
border. A crop larger than the image is cut to the image; a window whose side is not a multiple of the patch is
zero-padded evenly after normalisation (ClearCLIP's rule) and its padding is cut off again by the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from densevl.errors import ImageError
from densevl.kernels.resample import DecodePlan, axis_plan


@dataclass(frozen=True)
class AxisWindows:
    """Windows along one axis: `starts` in pixels, `crop` pixels each, padded to `tokens` patches."""

    length: int
    starts: tuple[int, ...]
    crop: int
    tokens: int
    before: int
    after: int

    @classmethod
    def place(cls, length: int, crop: int | None, stride: int, patch: int) -> AxisWindows:
        """Place windows on an axis of `length` pixels; crop None means one window over all of it."""
        side = length if crop is None else min(crop, length)
        count = max(length - side + stride - 1, 0) // stride + 1
        starts = tuple(min(i * stride, length - side) for i in range(count))
        tokens = -(-side // patch)
        padding = tokens * patch - side
        return cls(length, starts, side, tokens, padding // 2, padding - padding // 2)


@dataclass(frozen=True)
class WindowGrid:
    """The windows of an image, rows x cols of them, all of one size."""

    rows: AxisWindows
    cols: AxisWindows

    @classmethod
    def place(cls, height: int, width: int, crop: int | None, stride: int, patch: int) -> WindowGrid:
        """Lay windows over an image.

        Args:
            height, width: pixels of the (resized) image.
            crop: side of a window in pixels, None for the whole image in one window.
            stride: step in pixels.
            patch: pixels per patch of the backbone.

        Raises:
            ImageError: a crop, stride or side below 1, or a stride that leaves gaps.
        """
        if crop is not None and stride > crop and max(height, width) > crop:
            raise ImageError(f"stride {stride} leaves gaps between windows of crop {crop}; take a stride up to {crop}")
        if min(height, width) < 1 or stride < 1 or (crop is not None and crop < 1):
            raise ImageError(
                f"cannot lay windows of {crop} every {stride} px on {height}x{width}; all must be at least 1"
            )
        return cls(AxisWindows.place(height, crop, stride, patch), AxisWindows.place(width, crop, stride, patch))

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.cols.starts)

    def batches(self, pixels: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
        """Cut windows from (B, 3, H, W), at most `size` at a time: (n, 3, h*patch, w*patch), window-major, then B."""
        corners = [(top, left) for top in self.rows.starts for left in self.cols.starts]
        step = max(1, size // len(pixels))
        padding = (self.cols.before, self.cols.after, self.rows.before, self.rows.after)
        for first in range(0, len(corners), step):
            cut = [
                pixels[:, :, top : top + self.rows.crop, left : left + self.cols.crop]
                for top, left in corners[first : first + step]
            ]
            windows = torch.cat(cut) if len(cut) > 1 else cut[0]
            yield F.pad(windows, padding) if any(padding) else windows

    def assemble(self, scores: torch.Tensor, batch: int) -> torch.Tensor:
        """Window scores (n*B, h, w, T) in the order of `batches` to the block matrix (B, rows*h, cols*w, T)."""
        ky, kx, h, w = len(self.rows.starts), len(self.cols.starts), self.rows.tokens, self.cols.tokens
        blocks = scores.view(ky, kx, batch, h, w, -1)
        return blocks.permute(2, 0, 3, 1, 4, 5).reshape(batch, ky * h, kx * w, -1)

    def plan(self, height: int, width: int) -> DecodePlan:
        """The decoding plan from this grid's tokens to an output of (height, width) pixels."""
        axes = (
            axis_plan(axis.starts, axis.crop, axis.before, axis.after, axis.tokens, axis.length, size)
            for axis, size in ((self.rows, height), (self.cols, width))
        )
        return DecodePlan(*axes)
