"""Embeddings of square windows of patch tokens, in three ways.

"exact" (WinCLIP, CVPR 2023): CLS and the tokens of the window, with their positions in the image, run through all
blocks alone, so nothing outside the window is seen. "shared": a copy of CLS per window attends only to CLS and the
window's tokens, with keys and values from the pass over the whole image, through which their context leaks in.
"pooled": the mean of a recipe's dense features, as unit vectors. Shape letters: B images, W windows, n tokens of a
window, N tokens, D width, E joint space, A heads, d head width, h/w patch grid.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densevl.anomaly.tokens import Pass
from densevl.errors import RecipeError, suggest
from densevl.recipes.parts.regions import through
from densevl.recipes.tower import Grid

WAYS = ("exact", "shared", "pooled")
TOKENS = 2**15  # tokens run through the tower at a time
PAIRS = 2**24  # numbers of the attention mask times heads and images at a time


def window_side(scale: int, grid: Grid) -> tuple[int, int]:
    """The window of a scale, in patches; never larger than the grid."""
    return min(scale, grid[0]), min(scale, grid[1])


def window_index(grid: Grid, side: tuple[int, int]) -> torch.Tensor:
    """The patches of each window, (W, n) int64, both row by row; W = (h - kh + 1)(w - kw + 1)."""
    cells = torch.arange(grid[0] * grid[1]).view(grid)
    return cells.unfold(0, side[0], 1).unfold(1, side[1], 1).flatten(0, 1).flatten(1)


@torch.no_grad()
def window_embeddings(seen: Pass, scale: int, way: str = "exact", dense: torch.Tensor | None = None) -> torch.Tensor:
    """Embeddings of all windows of a scale: (B, h - kh + 1, w - kw + 1, E) float32, not normalised.

    Args:
        dense: (B, E, h, w) features for "pooled"; None takes the tower's own patch tokens.

    Raises:
        RecipeError: the way is unknown, or does not fit the tower.
    """
    if way not in WAYS:
        raise RecipeError(f"no windows '{way}'{suggest(way, WAYS)}; they are {', '.join(WAYS)}")
    side = window_side(scale, seen.grid)
    if way == "pooled":
        dense = seen.patches(len(seen.outputs) - 1, "joint") if dense is None else dense
        return F.avg_pool2d(F.normalize(dense.float(), dim=1), side, stride=1).permute(0, 2, 3, 1)
    index_Wn = window_index(seen.grid, side).to(seen.outputs[0].device)
    found = _exact(seen, index_Wn, side) if way == "exact" else _shared(seen, index_Wn)
    return found.float().unflatten(1, (seen.grid[0] - side[0] + 1, seen.grid[1] - side[1] + 1))


def _exact(seen: Pass, index_Wn: torch.Tensor, side: tuple[int, int]) -> torch.Tensor:
    tower = seen.tower
    if not tower.depth:
        raise RecipeError(f"windows 'exact' run tokens through blocks, but the tower is {tower.kind}; use 'pooled'")
    _refuse_rotary(seen, "exact")
    lead, patches = seen.outputs[0][:, : tower.prefix], seen.outputs[0][:, tower.prefix :]
    step = max(1, TOKENS // (len(patches) * (tower.prefix + index_Wn.shape[1])))
    found = []
    for part_Wn in index_Wn.split(step):
        tokens = torch.cat([lead[:, None].expand(-1, len(part_Wn), -1, -1), patches[:, part_Wn]], dim=2).flatten(0, 1)
        for block in range(tower.depth):
            tokens = tower.run(block, tokens, side)
        found.append(tower.pool(tokens).unflatten(0, (len(patches), -1)))
    return torch.cat(found, dim=1)


def _shared(seen: Pass, index_Wn: torch.Tensor) -> torch.Tensor:
    tower = seen.tower
    if not (tower.reads_cls and tower.prefix and tower.depth):
        raise RecipeError(
            f"windows 'shared' need a CLS token that alone is read; the tower is {tower.kind}; use 'pooled'"
        )
    _refuse_rotary(seen, "shared")
    batch, count = seen.outputs[0].shape[:2]
    views = [tower.view(block, seen.grid) for block in range(tower.depth)]
    keys = [view.project(view.norm(tokens), "kv") for view, tokens in zip(views, seen.outputs[:-1], strict=True)]
    heads = keys[0]["k"].shape[1]
    found = []
    for part_Wn in index_Wn.split(max(1, PAIRS // (batch * heads * count))):
        allowed = torch.zeros(len(part_Wn), count, dtype=torch.bool, device=part_Wn.device)
        allowed[:, : tower.prefix] = True
        allowed.scatter_(1, part_Wn + tower.prefix, True)
        query_BWD = seen.outputs[0][:, :1].expand(-1, len(part_Wn), -1)
        for view, own in zip(views, keys, strict=True):
            query_BWD = through(view, query_BWD, own, allowed)
        found.append(tower.read(query_BWD))
    return torch.cat(found, dim=1)


def _refuse_rotary(seen: Pass, way: str) -> None:
    """Refuse rotary positions: blocks rotate tokens by their grid place, which windows and copies of CLS lack."""
    if getattr(seen.tower.view(0, seen.grid), "_rope", None) is not None:
        raise RecipeError(f"windows '{way}' do not fit this tower's rotary positions; use 'pooled'")
