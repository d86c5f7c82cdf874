"""CLIPer's attention: the sum of the trained maps of all earlier blocks, normalised both ways (ICCV 2025)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from densevl.recipes.attention import Projections


def summed_maps(layers: Sequence[int], others: Callable[[int], Projections]) -> torch.Tensor:
    """The trained attention maps of some blocks added up: (B, A, N, N)."""

    def attention(layer: int) -> torch.Tensor:
        qk = others(layer)
        return (qk["q"] @ qk["k"].mT * qk["q"].shape[-1] ** -0.5).softmax(dim=-1)

    total = attention(layers[0])
    for layer in layers[1:]:
        total += attention(layer)
    return total


def balance(maps: torch.Tensor) -> torch.Tensor:
    """One sweep over columns and rows: what is needed before `sharpen`."""
    maps = maps / maps.sum(dim=-2, keepdim=True)
    return maps / maps.sum(dim=-1, keepdim=True)


def sharpen(maps: torch.Tensor) -> torch.Tensor:
    """Made symmetric, what is under the column's mean dropped, rows divided by their sums."""
    maps = (maps + maps.mT) / 2
    maps = (maps - maps.mean(dim=-2, keepdim=True)).clamp(min=0)
    return maps / maps.sum(dim=-1, keepdim=True).clamp(min=1e-12)
