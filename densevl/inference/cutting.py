"""Cutting a map of the whole image (features of a proxy, segments) to windows of it, at the windows' own tokens."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densevl.inference.windows import AxisWindows, WindowGrid


def cut(
    maps: torch.Tensor, windows: WindowGrid, corners: list[tuple[int, int]], tokens: tuple[int, int] | None = None
) -> torch.Tensor:
    """Parts of maps (B, C, h', w') that span the image of `windows`: (n*B, C, h, w), window by window.

    Args:
        maps: float maps are interpolated, integer maps read at the nearest place.
        windows: their geometry; corners: which of them, as `windows.corners` lists them.
        tokens: (h, w) of each part; None keeps the maps' own resolution, to the nearest whole number.

    Padding around the image repeats its border.
    """
    height, width = maps.shape[-2:]
    if tokens is None:
        tokens = (
            max(1, round(_span(windows.rows) * height / windows.rows.length)),
            max(1, round(_span(windows.cols) * width / windows.cols.length)),
        )
    parts = []
    for top, left in corners:
        y, x = _places(windows.rows, top, tokens[0]), _places(windows.cols, left, tokens[1])
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).to(maps.device)
        grid = grid.expand(len(maps), *grid.shape)
        mode = "bilinear" if maps.is_floating_point() else "nearest"
        parts.append(F.grid_sample(maps.float(), grid, mode=mode, padding_mode="border", align_corners=False))
    cut_out = torch.cat(parts)
    return cut_out if maps.is_floating_point() else cut_out.round().to(maps.dtype)


def without_margin(maps: torch.Tensor, whole: WindowGrid, tokens: tuple[int, int]) -> torch.Tensor:
    """Maps (B, C, h, w) of an image with its margin, read over the image alone at (h', w') places."""
    axes = []
    for axis, count in ((whole.rows, tokens[0]), (whole.cols, tokens[1])):
        centres = axis.before + (torch.arange(count) + 0.5) * axis.length / count
        axes.append(2 * centres / _span(axis) - 1)
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1).to(maps)
    grid = grid.expand(len(maps), *grid.shape)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)


def cut_regions(regions: torch.Tensor, windows: WindowGrid, corners: list[tuple[int, int]]) -> torch.Tensor:
    """A segment map (B, H, W) or masks (B, R, H, W) at the tokens of some windows; see `cut`."""
    tokens = windows.rows.tokens, windows.cols.tokens
    if regions.ndim == 4:
        return cut(regions.float(), windows, corners, tokens)
    return cut(regions[:, None], windows, corners, tokens)[:, 0]


def _span(axis: AxisWindows) -> int:
    return axis.before + axis.crop + axis.after


def _places(axis: AxisWindows, start: int, count: int) -> torch.Tensor:
    """Centres of a window's tokens on one axis, -1 and 1 being the image's edges."""
    first = start - axis.margin[0] - axis.before
    centres = first + (torch.arange(count) + 0.5) * _span(axis) / count
    return 2 * centres / axis.length - 1
