"""One pass for the whole image: windows run separately, their tokens meet on one patch grid, the rest runs once.

A recipe's `stitch` says where they meet. The state between `Backbone.start` and `Backbone.finish` is joined.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from densevl.errors import ProtocolError
from densevl.inference.canvas import Canvas
from densevl.inference.cutting import at, batches
from densevl.inference.windows import WindowGrid
from densevl.recipes import Hints, Recipe
from densevl.recipes.batch import Outcome
from densevl.recipes.features import DenseFeatures
from densevl.recipes.run import State

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone


@torch.no_grad()
def encode_stitched(
    backbone: Backbone, pixels: torch.Tensor, windows: WindowGrid, recipe: Recipe, hints: Hints, batch: int
) -> tuple[DenseFeatures, WindowGrid]:
    """Encode an image (B, 3, H, W) of any size with a recipe that stitches; also return the one window it spans.

    Args:
        windows: laid with blend "patch". hints: for the whole image, with models run. batch: windows per pass.

    Raises:
        ProtocolError: If the windows do not lie on one patch grid.
        RecipeError: As for `Backbone.encode_dense`.
    """
    if windows.blend != "patch":
        raise ProtocolError(f"recipe '{recipe.name}' stitches windows on one patch grid; set blend='patch'")
    whole = windows.whole()
    joined = _joined(backbone, pixels, windows, recipe, hints, batch)
    if isinstance(joined, Outcome):
        rows, cols = ((axis.before, axis.length, axis.after) for axis in (whole.rows, whole.cols))
        joined = replace(joined, frame=(rows, cols))
    margin = (*windows.cols.margin, *windows.rows.margin)
    laid = at(hints, whole, whole.corners, (whole.rows.tokens, whole.cols.tokens))
    laid = replace(laid, pixels=F.pad(pixels, margin) if any(margin) else pixels)
    dense = backbone.finish(joined, recipe, laid)
    return dense, whole.with_tokens(*dense.grid)


def _joined(
    backbone: Backbone, pixels: torch.Tensor, windows: WindowGrid, recipe: Recipe, hints: Hints, batch: int
) -> State:
    """Join the states of all windows on the grid of the image. The running sums are freed on return."""
    canvases: list[Canvas] = []
    for part, own in batches(pixels, windows, hints, batch):
        state = _even(backbone.start(part, recipe, own), windows)
        canvases = canvases or [Canvas(windows, pixels.shape[0], state.prefix) for _ in state.tensors()]
        for canvas, tokens_BNC in zip(canvases, state.tensors(), strict=True):
            canvas.add(tokens_BNC, state.grid)
    return state.like([canvas.mean() for canvas in canvases], canvases[0].grid)


def _even(state: State, windows: WindowGrid) -> State:
    """Resize a state to the multiple of the windows' grid that is nearest and divides patches evenly."""
    patch = windows.cols.crop // windows.cols.tokens
    ratios = [n for n in range(1, patch + 1) if patch % n == 0]
    ratio = min(ratios, key=lambda n: abs(n - state.grid[1] / windows.cols.tokens))
    grid = windows.rows.tokens * ratio, windows.cols.tokens * ratio
    if grid == state.grid:
        return state

    def resized(tokens_BNC: torch.Tensor) -> torch.Tensor:
        lead, patches = tokens_BNC[:, : state.prefix], tokens_BNC[:, state.prefix :].mT.unflatten(2, state.grid)
        finer = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False).flatten(2).mT
        return torch.cat([lead, finer], dim=1)

    return state.like([resized(tokens_BNC) for tokens_BNC in state.tensors()], grid)
