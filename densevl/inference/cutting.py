"""Cut an image into windows: the pixels, and the image's hints for the windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.nn import functional as F

from densevl.errors import RecipeError
from densevl.inference.windows import AxisWindows, WindowGrid
from densevl.recipes import Hints


def cut(
    maps: torch.Tensor, windows: WindowGrid, corners: list[tuple[int, int]], tokens: tuple[int, int] | None = None
) -> torch.Tensor:
    """Cut maps (B, C, h', w') over the image of `windows` into parts (n*B, C, h, w), window by window.

    Args:
        maps: float maps are interpolated, integer maps are read at the nearest place.
        windows: their geometry. corners: which of them, as listed in `windows.corners`.
        tokens: (h, w) of each part; None keeps the maps' own resolution, to the nearest integer.

    Padding around the image repeats its border.
    """
    height, width = maps.shape[-2:]
    if tokens is None:
        tokens = (
            max(1, round(windows.rows.span * height / windows.rows.length)),
            max(1, round(windows.cols.span * width / windows.cols.length)),
        )
    exact = maps.float() if maps.is_floating_point() else maps.double()  # region ids may be large
    parts = []
    for top, left in corners:
        y, x = _places(windows.rows, top, tokens[0]), _places(windows.cols, left, tokens[1])
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).to(exact)
        grid = grid.expand(len(maps), *grid.shape)
        mode = "bilinear" if maps.is_floating_point() else "nearest"
        parts.append(F.grid_sample(exact, grid, mode=mode, padding_mode="border", align_corners=False))
    cut_out = torch.cat(parts)
    return cut_out if maps.is_floating_point() else cut_out.round().to(maps.dtype)


def at(
    hints: Hints, windows: WindowGrid, corners: list[tuple[int, int]], tokens: tuple[int, int] | None = None
) -> Hints:
    """Return an image's hints for some of its windows, window by window. Hints for any image are kept.

    Args:
        tokens: (h, w) that proxy features are cut to; None keeps their own resolution.

    Raises:
        RecipeError: If there are boxes, which are for a whole image, and several windows.
    """
    if hints.boxes is not None and len(windows) > 1:
        raise RecipeError("boxes are for a whole image; take one window over it, crop=None")
    own = windows.rows.tokens, windows.cols.tokens  # bilinear at their centres, as masks are read
    proxy, regions, masks = hints.proxy, hints.regions, hints.masks
    return replace(
        hints,
        proxy=cut(proxy, windows, corners, tokens) if isinstance(proxy, torch.Tensor) else proxy,
        regions=None if regions is None else cut(regions[:, None], windows, corners)[:, 0],
        masks=None if masks is None else cut(masks.float(), windows, corners, own),
    )


def batches(pixels: torch.Tensor, windows: WindowGrid, hints: Hints, size: int) -> Iterator[tuple[torch.Tensor, Hints]]:
    """Yield windows of an image (B, 3, H, W), at most `size` at a time, each batch with its hints."""
    first = 0
    for part in windows.batches(pixels, size):
        corners = windows.corners[first : first + part.shape[0] // pixels.shape[0]]
        first += len(corners)
        yield part, at(hints, windows, corners)


def _places(axis: AxisWindows, start: int, count: int) -> torch.Tensor:
    """Return the centres of a window's tokens on one axis, where -1 and 1 are the image's edges."""
    first = start - axis.margin[0] - axis.before
    centres = first + (torch.arange(count) + 0.5) * axis.span / count
    return 2 * centres / axis.length - 1
