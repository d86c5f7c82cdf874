"""Formulas of papers and their code for which densevl has an operator: whole maps. Benchmarks compare with these."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def decode(
    parts: torch.Tensor, corners: Sequence[tuple[int, int]], crop: int, size: tuple[int, int], scale: float | None
) -> tuple[torch.Tensor, ...]:
    """Windows' scores (n, T, h, w) upsampled, padded, added, divided, resized: the best query's label (H, W).

    With a scale, also its probability among all queries, from a softmax over T x H x W.
    """
    height, width = (max(c[axis] for c in corners) + crop for axis in (0, 1))
    canvas = parts.new_zeros(parts.shape[1], height, width)
    count = parts.new_zeros(height, width)
    for (top, left), part in zip(corners, parts, strict=True):
        full = F.interpolate(part[None], size=(crop, crop), mode="bilinear")[0]
        canvas += F.pad(full, (left, width - left - crop, top, height - top - crop))
        count[top : top + crop, left : left + crop] += 1
    resized = F.interpolate((canvas / count)[None], size=size, mode="bilinear")[0]
    if scale is None:
        return (resized.argmax(dim=0),)
    best = (scale * resized).softmax(dim=0).max(dim=0)
    return best.indices, best.values


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of all heads (B, A, N, M), their softmax, the values (B, A, M, d)."""
    logits = q * q.shape[-1] ** -0.5 @ k.mT
    return (logits if bias is None else logits + bias).softmax(dim=-1) @ v


def affinity(x: torch.Tensor, v: torch.Tensor, heads: int, gamma: float, beta: float) -> torch.Tensor:
    """ProxyCLIP's affinity (B, N, N) of unit rows (B, N, P), one copy per head, applied to values (B, N, E)."""
    batch, tokens, _ = x.shape
    cosines = torch.einsum("bmc,bnc->bmn", x, x)
    logits = (cosines - cosines.mean(dim=(1, 2), keepdim=True) * beta) * gamma
    logits = logits.masked_fill(logits < 0.0, float("-inf"))
    weights = logits.unsqueeze(1).repeat(1, heads, 1, 1).reshape(batch * heads, tokens, tokens).softmax(dim=-1)
    of_heads = v.unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1)
    return torch.bmm(weights, of_heads).unflatten(0, (batch, heads)).transpose(1, 2).flatten(2)


def mix(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, x: torch.Tensor, factor: float = 1.2, cap: float = 0.9
) -> torch.Tensor:
    """Trident's maps of all heads (B, A, N, N), of probabilities and of cosines, applied to x (B, N, E)."""
    unit = F.normalize(v, dim=-1)
    cosines = unit @ unit.mT
    limit = (factor * cosines.mean(dim=(1, 3), keepdim=True)).clamp(max=cap)
    weights = ((q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) * (cosines > limit)).sum(dim=1)
    return weights @ x / weights.sum(dim=-1, keepdim=True)


def nearest(x: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All similarities (P, M), then the largest of each row and its index."""
    best = (x @ memory.mT).max(dim=1)
    return best.values, best.indices
