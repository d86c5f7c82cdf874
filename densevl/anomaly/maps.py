"""From a patch grid to an image's pixels, and from a map to one number."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

TRUNCATE = 4.0  # standard deviations at which a Gaussian is cut off


def smooth(values_Bhw: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur by a Gaussian of `sigma` grid cells with mirrored edges; 0 leaves the map unchanged."""
    reach = math.ceil(TRUNCATE * sigma) if sigma > 0 else 0
    if not reach:
        return values_Bhw
    offsets = torch.arange(-reach, reach + 1, dtype=values_Bhw.dtype, device=values_Bhw.device)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum()
    for axis in (1, 2):
        length = values_Bhw.shape[axis]
        places = (torch.arange(length)[:, None] + torch.arange(-reach, reach + 1)) % (2 * length)
        places = torch.minimum(places, 2 * length - 1 - places).to(values_Bhw.device)  # mirrored at both edges
        values_Bhw = (values_Bhw.movedim(axis, -1)[..., places] @ weights).movedim(-1, axis)
    return values_Bhw


def to_pixels(values_hw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resample a grid map (h, w) to the image's size (H, W), bilinearly between cell centres."""
    return F.interpolate(values_hw[None, None].float(), size=size, mode="bilinear", align_corners=False)[0, 0]


def peak(values_Bhw: torch.Tensor, top: float) -> torch.Tensor:
    """The mean of the largest `top` share of each map, at least one value; 0 is the maximum: (B,)."""
    flat = values_Bhw.flatten(1)
    count = max(1, round(top * flat.shape[1]))
    return flat.topk(count, dim=1).values.mean(dim=1)


def threshold(normal: torch.Tensor, fpr: float) -> float:
    """The smallest value that at most a share `fpr` of further normal scores is expected to exceed.

    That is the ceil((n + 1)(1 - fpr))-th smallest of the n scores (split-conformal). With too few scores for the share,
    it is the largest of them, which about 1 / (n + 1) exceed.
    """
    ordered = normal.flatten().sort().values
    rank = math.ceil((len(ordered) + 1) * (1 - fpr))
    return float(ordered[min(rank, len(ordered)) - 1])
