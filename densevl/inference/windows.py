"""Sliding windows: where they lie, how they are cut in batches, and the plan that reassembles their scores.

The papers' rule: n = max(L - crop + stride - 1, 0) // stride + 1 windows per axis; the last moves back to the border.
A crop larger than the image is reduced to it.

Without a stride the windows are tiles: as few of at most `crop` as cover the image with a patch of overlap, equal in
size, in whole patches, spread evenly. A tower then runs on most patches once, not four times as with the papers'
half-overlapping windows. The patch of overlap is there because scores at the very border of a window are the worst.

Overlaps are averaged in one of two places:

- "pixel" (SCLIP and most papers): each window is upsampled to its pixels, and pixels are averaged. A window whose side
  is not a multiple of the patch is zero-padded evenly after normalisation; its padding is cut off again (ClearCLIP).
- "patch" (Trident): the image is padded to whole patches, windows start at whole patches, tokens are averaged on one
  patch grid, and that grid is upsampled once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from densevl.backbones.protocol import BLENDS
from densevl.errors import ImageError, ProtocolError, one_of
from densevl.kernels.resample import AxisPlan, DecodePlan, axis_plan, patch_axis_block, pixel_axis_block

LARGEST_PLAN = 2**32  # bytes of the plan of an axis; 30,000 pixels take half a GB
TILE_OVERLAP = 1  # patches; among 0 to 4, 1 and 2 gave the best mIoU (docs/speed.md)


def _starts(length: int, crop: int, stride: int) -> tuple[int, ...]:
    count = max(length - crop + stride - 1, 0) // stride + 1
    return tuple(min(i * stride, length - crop) for i in range(count))


def _tiles(total: int, most: int) -> tuple[int, int]:
    """Return how many tiles cover `total` patches, and the patches of each: at most `most`."""
    if total <= most:
        return 1, total
    shared = min(TILE_OVERLAP, most - 1)
    count = -(-(total - shared) // (most - shared))
    return count, -(-(total + (count - 1) * shared) // count)


def _spread(length: int, side: int, count: int) -> tuple[int, ...]:
    """Return the starts of `count` windows of one side, spread evenly over a length."""
    return tuple(round(i * (length - side) / max(count - 1, 1)) for i in range(count))


@dataclass(frozen=True)
class AxisWindows:
    """Windows along one axis.

    Attributes:
        length: pixels of the image.
        starts: first pixel of each window, on the image with its margin.
        crop: pixels of a window; tokens: its patches.
        before, after: zero padding of each window, in pixels ("pixel" blend).
        margin: zero padding (before, after) of the whole image, in pixels ("patch" blend).
    """

    length: int
    starts: tuple[int, ...]
    crop: int
    tokens: int
    before: int = 0
    after: int = 0
    margin: tuple[int, int] = (0, 0)

    @property
    def span(self) -> int:
        """Return the pixels of a window with its padding."""
        return self.before + self.crop + self.after

    @classmethod
    def place(cls, length: int, crop: int | None, stride: int | None, patch: int, blend: str = "pixel") -> AxisWindows:
        """Place windows on an axis of `length` pixels; crop None is one window over all of it, stride None tiles."""
        total = -(-length // patch)
        most = total if crop is None else min(max(1, crop // patch), total)  # patches of a window, at most
        count, even = _tiles(total, most)
        if blend == "patch":
            side = most if stride is not None else even
            starts = _spread(total, side, count) if stride is None else _starts(total, side, max(1, stride // patch))
            extra = total * patch - length
            return cls(
                length, tuple(s * patch for s in starts), side * patch, side, margin=(extra // 2, extra - extra // 2)
            )
        if stride is None:
            side = min(even * patch, length)
            starts = _spread(length, side, count)
        else:
            side = length if crop is None else min(crop, length)
            starts = _starts(length, side, stride)
        tokens = -(-side // patch)
        padding = tokens * patch - side
        return cls(length, starts, side, tokens, padding // 2, padding - padding // 2)


@dataclass(frozen=True)
class WindowGrid:
    """The windows of an image, rows x cols, all of one size."""

    rows: AxisWindows
    cols: AxisWindows
    blend: str = "pixel"

    @classmethod
    def place(
        cls, height: int, width: int, crop: int | None, stride: int | None, patch: int, blend: str = "pixel"
    ) -> WindowGrid:
        """Lay windows over an image.

        Args:
            height, width: pixels of the (resized) image.
            crop: side of a window in pixels; None is one window over the whole image.
            stride: step in pixels; None is tiles, spread evenly over the image.
            patch: pixels per patch of the backbone.
            blend: where overlaps are averaged, "pixel" or "patch"; "patch" rounds crop and stride down to patches.

        Raises:
            ProtocolError: If a crop is below a patch, a stride or side below 1, a stride leaves gaps, or the blend is
                unknown.
        """
        if min(height, width) < 1 or (stride is not None and stride < 1) or (crop is not None and crop < patch):
            raise ProtocolError(
                f"cannot lay windows of {crop} px every {stride} px on {height}x{width}; a window holds at least one "
                f"patch, {patch} px, and strides and sides are at least 1"
            )
        if crop is not None and stride is not None and stride > crop and max(height, width) > crop:
            raise ProtocolError(
                f"stride {stride} leaves gaps between windows of crop {crop}; take a stride up to {crop}"
            )
        one_of(blend, BLENDS, "blend", ProtocolError)
        rows, cols = (AxisWindows.place(side, crop, stride, patch, blend) for side in (height, width))
        return cls(rows, cols, blend)

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.cols.starts)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Return top and left pixel of each window, on the image with its margin, in the order of `batches`."""
        return [(top, left) for top in self.rows.starts for left in self.cols.starts]

    @property
    def window(self) -> tuple[int, int]:
        """Return height and width of a window with its padding, in pixels."""
        return self.rows.span, self.cols.span

    def with_tokens(self, h: int, w: int) -> WindowGrid:
        """Return the same windows, each giving h x w tokens: a proxy's grid may be finer than the backbone's.

        Raises:
            ProtocolError: If the tokens do not divide the windows evenly on one patch grid ("patch" blend).
        """
        if (h, w) == (self.rows.tokens, self.cols.tokens):
            return self
        if self.blend == "patch" and (self.rows.crop % h or self.cols.crop % w):
            raise ProtocolError(
                f"windows of {self.rows.crop}x{self.cols.crop} px give {h}x{w} tokens, which do not lie on one patch "
                "grid; take blend 'pixel', or a crop that is a multiple of the proxy's patch"
            )
        return WindowGrid(replace(self.rows, tokens=h), replace(self.cols, tokens=w), self.blend)

    def whole(self) -> WindowGrid:
        """Return one window over the whole image and its margin, for stitched features ("patch" blend)."""

        def joined(axis: AxisWindows) -> AxisWindows:
            before, after = axis.margin
            tokens = (before + axis.length + after) // (axis.crop // axis.tokens)
            return AxisWindows(axis.length, (0,), axis.length, tokens, before, after)

        # A single window has nothing to average, so it may lie on any grid, such as another model's.
        return WindowGrid(joined(self.rows), joined(self.cols), "pixel")

    def batches(self, pixels: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
        """Cut windows from (B, 3, H, W), at most `size` at a time: (n, 3, h*patch, w*patch), window-major, then B.

        All batches but the last have one size, and the last is hardly smaller.
        """
        corners = self.corners
        count = -(-len(corners) // max(1, size // len(pixels)))
        step = -(-len(corners) // count)
        padding = (self.cols.before, self.cols.after, self.rows.before, self.rows.after)
        margin = (*self.cols.margin, *self.rows.margin)
        pixels = F.pad(pixels, margin) if any(margin) else pixels
        for first in range(0, len(corners), step):
            cut = [
                pixels[:, :, top : top + self.rows.crop, left : left + self.cols.crop]
                for top, left in corners[first : first + step]
            ]
            windows = torch.cat(cut) if len(cut) > 1 else cut[0]
            yield F.pad(windows, padding) if any(padding) else windows

    def assemble(self, scores: torch.Tensor, batch: int) -> torch.Tensor:
        """Arrange window scores (n*B, h, w, T) in the order of `batches` as a block matrix (B, rows*h, cols*w, T)."""
        ky, kx, h, w = len(self.rows.starts), len(self.cols.starts), self.rows.tokens, self.cols.tokens
        if scores.shape[:3] != (ky * kx * batch, h, w):
            raise ProtocolError(
                f"scores are of {scores.shape[0]} windows with {tuple(scores.shape[1:3])} tokens; the grid has "
                f"{ky * kx} windows for each of {batch} images, with {(h, w)} tokens"
            )
        blocks = scores.view(ky, kx, batch, h, w, -1)
        return blocks.permute(2, 0, 3, 1, 4, 5).reshape(batch, ky * h, kx * w, -1)

    def plan(self, height: int, width: int, *, centres: bool = False) -> DecodePlan:
        """Return the decoding plan from this grid's tokens to an output of (height, width) pixels.

        Args:
            centres: outputs are cells, and each reads the tokens at its centre: where cells are patches, the tokens
                themselves. Otherwise tokens are first upsampled to the image's pixels, and outputs read those.

        Raises:
            ImageError: If an axis is so long that its plan does not fit in memory.
        """
        self.require_plan(height, width)
        sides = ((self.rows, height), (self.cols, width))
        return DecodePlan(*(axis_plan(*self._geometry(axis), axis.tokens, size, centres) for axis, size in sides))

    def require_plan(self, height: int, width: int) -> None:
        """Refuse an output whose plan would not fit in memory: an axis times the tokens along it.

        Raises:
            ImageError: If it would not; the message names another way.
        """
        for axis, size in ((self.rows, height), (self.cols, width)):
            if (taken := 4 * size * len(axis.starts) * axis.tokens) > LARGEST_PLAN:
                raise ImageError(
                    f"an image of {height}x{width} is too long to be decoded at once ({taken / 2**30:.0f} GiB); go "
                    "block by block: densevl segment --geotiff, or BlockSegmenter"
                )

    def block(self, rows: bool, size: int, start: int, stop: int) -> tuple[tuple[int, ...], AxisPlan]:
        """Return the part of a plan for some output pixels of one axis; the whole axis is never built.

        Args:
            rows: the axis of rows, else that of columns. size: all its output pixels. start, stop: those wanted.

        Returns:
            The numbers of the windows along the axis that these pixels touch, and the plan with the columns of only
            those windows: its rows are those of the whole plan bit for bit, without the columns that are 0 there.
        """
        block, geometry = self._geometry(self.rows if rows else self.cols)
        return block(*geometry, size, start, stop)

    def _geometry(self, axis: AxisWindows) -> tuple[Callable[..., tuple[tuple[int, ...], AxisPlan]], tuple[Any, ...]]:
        """Return the function that plans an axis in this blend, and its arguments up to the length."""
        if self.blend == "patch":
            return patch_axis_block, (axis.starts, axis.crop // axis.tokens, axis.tokens, axis.margin, axis.length)
        return pixel_axis_block, (axis.starts, axis.crop, axis.before, axis.after, axis.tokens, axis.length)
