"""Resizing a positional table to another patch grid; the rule is visible in the features, so it has a name.

Rules: "size" is bicubic to the grid's size; "size_antialias" the same with antialiasing (open_clip, timm);
"scale_factor" is bicubic with the scale (n + 0.1) / g, which also shifts the sampling points (DINO's code and the
segmentation papers after SCLIP); "bilinear" is bilinear to the grid's size; "bilinear_half" the same,
rounded to half precision for every grid, as in CLIPer's code; "bilinear_antialias" is bilinear with antialiasing
(TIPSv2, SigLIP 2 of any resolution); "square" is bilinear to a square of the grid's longer side, cropped to its top
left part (RADIO); "square_aligned" is the same with align-corners on (C-RADIOv3 B and H).

During export each rule is one small matrix per axis that depends on the size alone, so that the graph takes any size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from densevl.errors import RecipeError, suggest
from densevl.recipes.recipe import POSITION_RULES

SQUARES = ("square", "square_aligned")
SHIFT = 0.1  # patches that DINO's code adds to a grid's side before the division
CUBIC, CUBIC_ANTIALIAS = -0.75, -0.5  # the kernels' parameters in torch, and in Pillow, which antialiases


def resize_positions(
    table_ND: torch.Tensor, source: tuple[int, int], grid: tuple[int, int], rule: str, prefix: int = 1
) -> torch.Tensor:
    """Resize a table (prefix + gh*gw, D) made for grid `source` to (prefix + h*w, D); a matching grid is unchanged.

    Raises:
        RecipeError: the rule is unknown.
    """
    if rule not in POSITION_RULES:
        raise RecipeError(
            f"no position rule '{rule}'{suggest(rule, POSITION_RULES)}; known: {', '.join(POSITION_RULES)}"
        )
    if rule == "bilinear_half":
        return resize_positions(table_ND, source, grid, "bilinear", prefix).half().to(table_ND.dtype)
    if torch.compiler.is_exporting():
        return _in_a_graph(table_ND, source, grid, rule, prefix)
    target = (max(grid),) * 2 if rule in SQUARES else tuple(grid)
    if tuple(source) == tuple(grid) == target:
        return table_ND
    # float32 throughout: bicubic is not defined for half precision on every device
    cells = table_ND[prefix:].float().unflatten(0, source).permute(2, 0, 1)[None]
    if rule == "scale_factor":
        factor = tuple((n + SHIFT) / g for n, g in zip(grid, source, strict=True))
        cells = F.interpolate(cells, scale_factor=factor, mode="bicubic", align_corners=False)
    elif rule in SQUARES:
        cells = F.interpolate(cells, size=target, mode="bilinear", align_corners=rule == "square_aligned")
        cells = cells[..., : grid[0], : grid[1]]
    else:
        mode = "bilinear" if rule.startswith("bilinear") else "bicubic"
        cells = F.interpolate(cells, size=target, mode=mode, align_corners=False, antialias=rule.endswith("antialias"))
    resized = cells[0].permute(1, 2, 0).flatten(0, 1).to(table_ND.dtype)
    return torch.cat([table_ND[:prefix], resized])


def timm_tokens(trunk: Any, patches_BND: torch.Tensor, grid: tuple[int, int], rule: str) -> torch.Tensor:
    """Prefix tokens, patches and positions, joined as in timm's ViTs: the table covers the prefix, or patches alone."""
    own = [getattr(trunk, name, None) for name in ("cls_token", "reg_token")]
    prefix = [token.expand(patches_BND.shape[0], -1, -1).to(patches_BND.dtype) for token in own if token is not None]
    table = getattr(trunk, "pos_embed", None)
    if table is None:
        return torch.cat([*prefix, patches_BND], dim=1)
    covered = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
    positions = resize_positions(table[0], tuple(trunk.patch_embed.grid_size), grid, rule, covered)
    positions = positions.to(patches_BND.dtype)
    if trunk.no_embed_class:
        return torch.cat([*prefix, patches_BND + positions], dim=1)
    return torch.cat([*prefix, patches_BND], dim=1) + positions


def _in_a_graph(
    table_ND: torch.Tensor, source: tuple[int, int], grid: tuple[int, int], rule: str, prefix: int
) -> torch.Tensor:
    """The same during export: sizes are symbols, and the graph must take the trained grid too."""
    sizes = torch.stack([table_ND.new_ones(side).sum() for side in grid])
    shifts = (SHIFT if rule == "scale_factor" else 0.0) * (sizes != sizes.new_tensor(source)).any() * torch.ones(2)
    if rule in SQUARES:
        shifts = sizes.max() - sizes
    rows, cols = (position_matrix(n, g, rule, s) for n, g, s in zip(grid, source, shifts.unbind(), strict=True))
    cells_ghgwD = table_ND[prefix:].float().unflatten(0, source)
    resized = torch.einsum("yi,xj,ijd->yxd", rows, cols, cells_ghgwD).flatten(0, 1)
    return torch.cat([table_ND[:prefix], resized.to(table_ND.dtype)])


def position_matrix(n: int, g: int, rule: str, shift: torch.Tensor) -> torch.Tensor:
    """(n, g) float32: the weights of g places in each of n, by a rule; the same as torch's own resizing.

    Args:
        shift: scalar that is added to n before g is divided by it: for squares, the excess of the longer side.
            The result is on its device.
    """
    # float64 inside, because places are differences of large numbers
    out = torch.arange(n, dtype=torch.float64, device=shift.device)[:, None] + 0.5
    at = torch.arange(g, dtype=torch.float64, device=shift.device)[None]
    step = g / (n + shift)
    if rule == "size_antialias":
        near = _cubic((at + 0.5 - out * step) / step.clamp(min=1.0), CUBIC_ANTIALIAS)
        return (near / near.sum(dim=1, keepdim=True)).float()
    if rule == "bilinear_antialias":
        near = (1 - ((at + 0.5 - out * step) / step.clamp(min=1.0)).abs()).clamp(min=0)
        return (near / near.sum(dim=1, keepdim=True)).float()
    place = (out - 0.5) * (g - 1) / (n + shift - 1).clamp(min=1) if rule == "square_aligned" else out * step - 0.5
    if rule in ("bilinear", *SQUARES):
        return (1 - (at - place.clamp(0, g - 1)).abs()).clamp(min=0).float()
    # beyond the border, torch reads the border's entry: taps outside are added to the first or the last
    low = place.floor()
    weights = torch.zeros_like(place * at)
    for tap in (-1, 0, 1, 2):
        weights = weights + _cubic(place - (low + tap), CUBIC) * ((low + tap).clamp(0, g - 1) == at)
    return weights.float()


def _cubic(distance: torch.Tensor, a: float) -> torch.Tensor:
    """Keys' cubic convolution kernel."""
    x = distance.abs()
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, inner, torch.where(x < 2, outer, 0.0))
