"""RADSeg in float64, head by head, from its paper's formulas; shares nothing with densevl."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def recursive(q: Tensor, k: Tensor, v: Tensor, out, scale: float = 10.0) -> Tensor:
    """q, k, v (heads, T, d) to the block's attention output (T, D): `out` projects joined heads (T, D)."""
    first = out(
        torch.cat([torch.softmax(a @ b.T / math.sqrt(a.shape[1]), -1) @ c for a, b, c in zip(q, k, v, strict=True)], -1)
    )
    width = v.shape[2]
    found = []
    for head in range(len(v)):
        alike = cosines(first[:, head * width : (head + 1) * width])
        found.append(torch.softmax(torch.where(alike < 0, -torch.inf, scale * alike), -1) @ v[head])
    return out(torch.cat(found, -1))


def aggregated(features: Tensor, scale: float = 10.0) -> Tensor:
    """Features (N, D) of a whole image spread over those that are more alike than two are on average."""
    alike = cosines(features)
    over = scale * (alike - alike.mean())
    return torch.softmax(torch.where(over < 0, -torch.inf, over), -1) @ features


def averaged(parts: list[Tensor], places: list[tuple[int, int]], grid: tuple[int, int], side: int) -> Tensor:
    """Features of windows (side * side, D) at their places, on the grid of the image: (h * w, D)."""
    total, count = torch.zeros(*grid, parts[0].shape[1]).double(), torch.zeros(*grid, 1).double()
    for part, (top, left) in zip(parts, places, strict=True):
        total[top : top + side, left : left + side] += part.reshape(side, side, -1)
        count[top : top + side, left : left + side] += 1
    return (total / count).flatten(0, 1)


def cosines(x: Tensor) -> Tensor:
    rows = x / x.norm(dim=1, keepdim=True)
    return rows @ rows.T
