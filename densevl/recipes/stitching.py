"""One pass for the whole image: windows run through the trunk, their tokens meet on one patch grid, the rest once.

"qkv" stitches the projections of the last block (OV-Stitcher); "features" stitches what the last block gives in each
window, for an aggregation over the whole image (Trident). Shape letters: B batch, N tokens, D width, E joint space.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from densevl.errors import ProtocolError, RecipeError
from densevl.inference.cutting import cut, cut_regions, without_margin
from densevl.inference.windows import WindowGrid
from densevl.kernels import affinity_mix
from densevl.recipes.canvas import Canvas
from densevl.recipes.engine import finish, require
from densevl.recipes.features import DenseFeatures, Hints
from densevl.recipes.parts import Mix
from densevl.recipes.recipe import Recipe
from densevl.recipes.rewire import Rewirer
from densevl.recipes.tower import Tower
from densevl.recipes.trunk import Trunk, run_trunk


def encode_stitched(
    tower: Tower, pixels: torch.Tensor, windows: WindowGrid, recipe: Recipe, rule: str, hints: Hints, batch: int
) -> DenseFeatures:
    """Encode an image (B, 3, H, W) of any size by a recipe that stitches: features on the grid of the whole image.

    Args:
        tower, recipe, rule, hints: as `engine.encode` takes them; hints are for the whole image.
        windows: laid with blend "patch". batch: windows per pass.

    Raises:
        ProtocolError: windows that do not lie on one patch grid. RecipeError: as `engine.encode`.
    """
    if windows.blend != "patch":
        raise ProtocolError(f"recipe '{recipe.name}' stitches windows on one patch grid; set blend='patch'")
    if hints.compat:
        recipe = recipe.as_published()
    require(tower, recipe, hints)
    if recipe.stitch == "qkv":
        trunk = _joint_trunk(tower, pixels, windows, recipe, rule, batch)
        margin = (*windows.cols.margin, *windows.rows.margin)
        padded = F.pad(pixels, margin) if any(margin) else pixels
        return finish(tower, trunk, recipe, replace(_with_margin(hints, windows), pixels=padded))
    return _by_features(tower, pixels, windows, recipe, rule, hints, batch)


def _with_margin(hints: Hints, windows: WindowGrid) -> Hints:
    """Hints of the image laid on the grid of the image with its margin."""
    whole = windows.whole()
    tokens = whole.rows.tokens, whole.cols.tokens
    if hints.proxy is not None:
        hints = replace(hints, proxy=cut(hints.proxy, whole, whole.corners, tokens))
    if hints.regions is not None:
        hints = replace(hints, regions=cut_regions(hints.regions, whole, whole.corners))
    return hints


def _joint_trunk(
    tower: Tower, pixels: torch.Tensor, windows: WindowGrid, recipe: Recipe, rule: str, batch: int
) -> Trunk:
    """The trunks of all windows as one: patches averaged on the whole image's grid, leading tokens over windows."""
    canvases: dict[int | str, Canvas] = defaultdict(lambda: Canvas(windows, len(pixels), tower.prefix))
    for part in windows.batches(pixels, batch):
        trunk = run_trunk(tower, part, recipe, rule)
        canvases["x"].add(trunk.x)
        for layer, tokens in trunk.outputs.items():
            canvases[layer].add(tokens)
        for letter, projected in trunk.qkv.items():
            canvases[letter].add(projected.transpose(1, 2).flatten(2))
    means = {key: canvas.mean() for key, canvas in canvases.items()}
    qkv = {key: means[key].unflatten(2, (one.shape[1], -1)).transpose(1, 2) for key, one in trunk.qkv.items()}
    return Trunk(means["x"], {layer: means[layer] for layer in trunk.outputs}, canvases["x"].grid, qkv)


def _by_features(
    tower: Tower, pixels: torch.Tensor, windows: WindowGrid, recipe: Recipe, rule: str, hints: Hints, batch: int
) -> DenseFeatures:
    """Outputs of the last block, averaged on the image's grid, mixed over the whole image, then read."""
    canvas, first = Canvas(windows, len(pixels)), 0
    for part in windows.batches(pixels, batch):
        corners = windows.corners[first : first + len(part) // len(pixels)]
        first += len(corners)
        own = replace(hints, pixels=part)
        if hints.proxy is not None:
            own = replace(own, proxy=cut(hints.proxy, windows, corners))
        if hints.regions is not None:
            own = replace(own, regions=cut_regions(hints.regions, windows, corners))
        rewirer = Rewirer(tower, run_trunk(tower, part, recipe, rule), recipe, own)
        grid = _even(rewirer.grid, windows)
        tokens_BDhw = rewirer.chain()[:, rewirer.prefix :].mT.unflatten(2, rewirer.grid)
        if grid != rewirer.grid:
            tokens_BDhw = F.interpolate(tokens_BDhw, size=grid, mode="bilinear", align_corners=False)
        canvas.add(tokens_BDhw.flatten(2).mT, grid)
    y_BND, size = canvas.mean(), canvas.grid
    if recipe.whole is not None:
        whole = canvas.windows.whole()
        y_BND, size = _mix(y_BND.mT.unflatten(2, size), recipe.whole, recipe, hints, whole)
    y_BNE = tower.read(y_BND)
    return DenseFeatures(features=y_BNE.mT.unflatten(2, size), scoring=recipe.scoring)


def _even(grid: tuple[int, int], windows: WindowGrid) -> tuple[int, int]:
    """The multiple of the windows' own tokens nearest to a grid that divides patches evenly: parts lie on one grid."""
    patch = windows.cols.crop // windows.cols.tokens
    ratios = [n for n in range(1, patch + 1) if patch % n == 0]
    ratio = min(ratios, key=lambda n: abs(n - grid[1] / windows.cols.tokens))
    return windows.rows.tokens * ratio, windows.cols.tokens * ratio


def _mix(
    y_BDhw: torch.Tensor, spec: Mix, recipe: Recipe, hints: Hints, whole: WindowGrid
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Tokens on the image's grid spread by SAM's attention; they come back on SAM's grid, margin and all."""
    sam: Any = hints.sam
    if sam is None:
        raise RecipeError(
            f"recipe '{recipe.name}' spreads the image by SAM's attention; give sam=load_proxy('sam_vit_b')"
        )
    y_BDhw = without_margin(y_BDhw, whole, sam.covered)
    mixed = affinity_mix(
        sam.q,
        sam.k,
        sam.v,
        y_BDhw.flatten(2).mT,
        grid=sam.grid,
        covered=sam.covered,
        rel=sam.rel,
        factor=spec.factor,
        cap=spec.cap,
        negative=spec.negative,
    )
    if not any((whole.rows.before, whole.rows.after, whole.cols.before, whole.cols.after)):
        return mixed, sam.covered
    laid = cut(
        mixed.mT.unflatten(2, sam.covered), whole, whole.corners, sam.covered
    )  # the decoder counts on the margin
    return laid.flatten(2).mT, sam.covered
