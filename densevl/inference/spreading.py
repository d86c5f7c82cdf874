"""Scores of all windows propagated together over one graph of patches (LPOSS)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from densevl.inference.cutting import cut
from densevl.inference.windows import WindowGrid
from densevl.refine import PatchGraph

if TYPE_CHECKING:
    from densevl.recipes.parts import Spread


def spread_scores(
    scores: torch.Tensor, spec: Spread, proxy: torch.Tensor, windows: WindowGrid, compat: bool = False
) -> torch.Tensor:
    """Propagate window scores (n*B, h, w, T), in the order of `WindowGrid.batches`, each image's windows together.

    Args:
        proxy: (B, P, h', w') features for the whole image. compat: the authors' ten steps of conjugate gradients.
    """
    h, w = windows.rows.tokens, windows.cols.tokens
    batch = len(proxy)
    features = cut(proxy, windows, windows.corners, (h, w))
    features = F.normalize(features, dim=1).flatten(2).mT.unflatten(0, (-1, batch))  # (n, B, N, P)
    step_y = (windows.rows.before + windows.rows.crop + windows.rows.after) / h
    step_x = (windows.cols.before + windows.cols.crop + windows.cols.after) / w
    y, x = torch.meshgrid((torch.arange(h) + 0.5) * step_y, (torch.arange(w) + 0.5) * step_x, indexing="ij")
    inside = torch.stack([y, x], dim=-1).flatten(0, 1)
    places = torch.cat([inside + torch.tensor(corner, dtype=inside.dtype) for corner in windows.corners])
    spread = torch.empty_like(scores).unflatten(0, (-1, batch))
    for image in range(batch):
        graph = PatchGraph(
            features[:, image].flatten(0, 1),
            places.to(features),
            neighbours=spec.neighbours,
            power=spec.power,
            falloff=spec.falloff,
        )
        own = scores.unflatten(0, (-1, batch))[:, image]
        found = graph.propagate(own.flatten(0, 2), alpha=spec.alpha, compat=compat).view_as(own)
        # A constant comes out 1 / (1 - alpha) times as large; undone, scores stay on the scale of cosines.
        spread[:, image] = found if compat else (1 - spec.alpha) * found
    return spread.flatten(0, 1)
