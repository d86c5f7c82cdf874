"""FALIP's bias: CLS looks more at the patches of a box, most at its middle (ECCV 2024)."""

from __future__ import annotations

import math

import torch

from densevl.errors import RecipeError
from densevl.recipes.features import Hints
from densevl.recipes.parts import Foveal
from densevl.recipes.tower import Grid


def foveal_bias(spec: Foveal, hints: Hints, grid: Grid, prefix: int) -> torch.Tensor:
    """Bias (B, 1, N, N) on attention logits: row 0 over the patches of each image's box, 0 elsewhere.

    Without boxes the whole image is the box.

    Raises:
        RecipeError: boxes of another shape than (B, 4).
    """
    pixels = hints.pixels
    if pixels is None:
        raise RecipeError("a foveal bias needs the pixels it is for; call encode_dense")
    height, width = pixels.shape[2:]
    boxes = (
        hints.boxes if hints.boxes is not None else pixels.new_tensor([[0, 0, width, height]]).expand(len(pixels), 4)
    )
    if tuple(boxes.shape) != (len(pixels), 4):
        raise RecipeError(f"boxes are {tuple(boxes.shape)} for {len(pixels)} images; give one box each, (B, 4)")
    h, w = grid
    bias = torch.zeros(len(boxes), 1, prefix + h * w, prefix + h * w, device=pixels.device)
    for image, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        columns, rows = _cells(x0, x1, w, width / w), _cells(y0, y1, h, height / h)
        bumps = torch.zeros(h, w)
        bumps[rows, columns] = _bump(rows.stop - rows.start, columns.stop - columns.start, spec)
        bias[image, 0, 0, prefix:] = bumps.flatten()
    return bias


def _cells(start: float, stop: float, count: int, patch: float) -> slice:
    """The patches an interval touches; one that ends on a patch's first pixel line does not touch it."""
    first, last = (min(max(math.ceil(edge / patch), 1), count) for edge in (start, stop))
    return slice(first - 1, max(last, first))


def _bump(rows: int, columns: int, spec: Foveal) -> torch.Tensor:
    """Stretched to 0..peak in single precision, as the authors do: at a std this wide, rounding shows."""
    y, x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (rows, columns))
    bump = torch.exp(-0.5 * (y[:, None] ** 2 + x[None] ** 2) / spec.std**2).float()
    low, high = bump.min(), bump.max()
    return (bump - low + 1e-6) / (high - low + 1e-6) * spec.peak
