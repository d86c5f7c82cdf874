"""Which patches show the object and which the background, from the image's own features.

After AnomalyDINO (Damm et al., WACV 2025): the first principal component of an image's patches separates object from
background; the normal images decide whether that works. The paper's threshold on the component is for DINOv2, so Otsu's
(IEEE Trans. SMC 1979) is used here, and the side with less of the edge is the object. Shape letters: B images, h/w
grid, D width.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

CENTRE = 0.6  # side of the middle part, as a fraction of the image's
COVERED = 0.35  # smallest fraction of the middle part that an object covers
RIM = 0.5  # largest fraction of the edge that an object covers


def foreground(features_BhwD: torch.Tensor) -> torch.Tensor:
    """The object's cells, bool (B, h, w), grown by one cell and closed."""
    return torch.stack([_one(features) for features in features_BhwD])


def shows_object(mask_Bhw: torch.Tensor) -> torch.Tensor:
    """Whether a mask looks like an object on a background, bool (B,): much of the middle and little of the edge."""
    shares = torch.stack([_shares(mask) for mask in mask_Bhw])
    return (shares[:, 0] >= COVERED) & (shares[:, 1] <= RIM)


def _one(features_hwD: torch.Tensor) -> torch.Tensor:
    size = features_hwD.shape[:2]
    rows = features_hwD.flatten(0, 1).float()
    rows = rows - rows.mean(dim=0)
    component = rows @ torch.linalg.eigh(rows.mT @ rows).eigenvectors[:, -1]
    mask = (component > otsu(component)).view(size)
    middle, rim = _shares(mask)
    mask = ~mask if rim > middle else mask
    grown = _dilate(mask)
    return ~_dilate(~_dilate(grown))  # a dilation, then a closing


def otsu(values: torch.Tensor, bins: int = 128) -> torch.Tensor:
    """The scalar threshold that splits values into two groups of least variance within."""
    low, high = values.min(), values.max()
    counts = torch.histc(values.cpu(), bins).double()
    middles = torch.linspace(0.5 / bins, 1 - 0.5 / bins, bins, dtype=torch.float64)
    below, total = counts.cumsum(0), counts.sum()
    sums = (counts * middles).cumsum(0)
    mean_below, mean_above = sums / below.clamp(min=1), (sums[-1] - sums) / (total - below).clamp(min=1)
    between = below * (total - below) * (mean_below - mean_above) ** 2
    best = (between == between.max()).nonzero()  # several if no value lies between the groups
    cut = int(best[len(best) // 2])
    return low + (high - low) * (cut + 1) / bins


def _shares(mask_hw: torch.Tensor) -> torch.Tensor:
    """The fraction of the middle part and of the edge that a mask covers, (2,)."""
    height, width = mask_hw.shape
    inside = torch.zeros_like(mask_hw)
    inside[1:-1, 1:-1] = True
    down, right = (int(side * (1 - CENTRE) / 2) for side in (height, width))
    middle = mask_hw[down : height - down, right : width - right].float().mean()
    return torch.stack([middle, mask_hw[~inside].float().mean()])


def _dilate(mask_hw: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(mask_hw[None, None].float(), 3, 1, 1)[0, 0] > 0
