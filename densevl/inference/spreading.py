"""Spread the scores of all windows together: where their tokens lie, and the proxy's features there."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densevl.inference.cutting import cut
from densevl.inference.windows import WindowGrid
from densevl.recipes.part import Spread


def spread_scores(scores: torch.Tensor, part: Spread, proxy: torch.Tensor, windows: WindowGrid) -> torch.Tensor:
    """Spread window scores (n*B, h, w, T), in the order of `WindowGrid.batches`, over all windows of an image.

    Args:
        proxy: (B, P, h', w') features for the whole image.
    """
    h, w = windows.rows.tokens, windows.cols.tokens
    batch = proxy.shape[0]
    features = cut(proxy, windows, windows.corners, (h, w))
    features = F.normalize(features, dim=1).flatten(2).mT.unflatten(0, (-1, batch))  # (n, B, N, P)
    y, x = ((torch.arange(axis.tokens) + 0.5) * (axis.span / axis.tokens) for axis in (windows.rows, windows.cols))
    y, x = torch.meshgrid(y, x, indexing="ij")
    inside = torch.stack([y, x], dim=-1).flatten(0, 1)
    places = torch.cat([inside + torch.tensor(corner, dtype=inside.dtype) for corner in windows.corners])
    spread = torch.empty_like(scores).unflatten(0, (-1, batch))
    for image in range(batch):
        own = scores.unflatten(0, (-1, batch))[:, image]
        found = part.spread(own.flatten(0, 2), features[:, image].flatten(0, 1), places.to(features))
        spread[:, image] = found.view_as(own)
    return spread.flatten(0, 1)
