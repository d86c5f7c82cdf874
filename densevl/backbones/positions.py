"""Resizing a positional table to another patch grid; the rule is visible in the features, so it is named.

Rules: "size" is bicubic to the grid's size; "size_antialias" the same with antialiasing (open_clip, timm);
"scale_factor" is bicubic with the scale (n + 0.1) / g, which also shifts the sampling points (DINO's code and the
segmentation papers after SCLIP); "bilinear" is bilinear to the grid's size; "bilinear_half" the same,
rounded to half precision whatever the grid, as CLIPer's code does. Align-corners is off in all of them.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densevl.errors import RecipeError, suggest
from densevl.recipes.recipe import POSITION_RULES


def resize_positions(
    table_ND: torch.Tensor, source: tuple[int, int], grid: tuple[int, int], rule: str, prefix: int = 1
) -> torch.Tensor:
    """Resize a table (prefix + gh*gw, D) made for grid `source` to (prefix + h*w, D); a matching grid is untouched.

    Raises:
        RecipeError: unknown rule.
    """
    if rule not in POSITION_RULES:
        raise RecipeError(
            f"no position rule '{rule}'{suggest(rule, POSITION_RULES)}; known: {', '.join(POSITION_RULES)}"
        )
    if rule == "bilinear_half":
        return resize_positions(table_ND, source, grid, "bilinear", prefix).half().to(table_ND.dtype)
    if tuple(source) == tuple(grid):
        return table_ND
    # float32 throughout: bicubic is not defined for half precision on every device
    cells = table_ND[prefix:].float().unflatten(0, source).permute(2, 0, 1)[None]
    if rule == "scale_factor":
        factor = tuple((n + 0.1) / g for n, g in zip(grid, source, strict=True))
        cells = F.interpolate(cells, scale_factor=factor, mode="bicubic", align_corners=False)
    else:
        mode = "bilinear" if rule == "bilinear" else "bicubic"
        cells = F.interpolate(cells, size=grid, mode=mode, align_corners=False, antialias=rule == "size_antialias")
    resized = cells[0].permute(1, 2, 0).flatten(0, 1).to(table_ND.dtype)
    return torch.cat([table_ND[:prefix], resized])
