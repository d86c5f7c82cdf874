"""Build memories from the features of normal images: which rows are kept, with their image and place."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from densevl.anomaly.evidence import WINDOW
from densevl.anomaly.memory.nearest import NearestMemory
from densevl.anomaly.scorer import Looked
from densevl.anomaly.scoring import Scoring


def remember(seen: Sequence[Sequence[Looked]], scoring: Scoring, masked: bool = False) -> dict[str, NearestMemory]:
    """Build memories by level.

    Args:
        seen: for each normal image its views, of one image each. masked: whether to leave out background patches.
    """
    memories = {}
    for level in seen[0][0].levels:
        parts = [[_rows(look, level, masked) for look in views] for views in seen]
        rows = [torch.cat([row for row, _ in views]) for views in parts]
        places = [torch.cat([place for _, place in views]) for views in parts] if scoring.near is not None else None
        memories[level] = NearestMemory.of(rows, scoring.metric, places).compress(scoring.most)
    return memories


def _rows(look: Looked, level: str, masked: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of one image and their places, (M, D) and (M, 2)."""
    grid = look.levels[level][0]
    kept = torch.ones(grid.shape[:2], dtype=torch.bool, device=grid.device)
    if masked and look.object is not None and not level.startswith(WINDOW):
        kept = look.object[0]
    return grid[kept], kept.nonzero()
