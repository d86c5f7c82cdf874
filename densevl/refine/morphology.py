"""Removal of small specks and gaps from a label map.

ITACLIP (Aydin et al., CVPR Workshops 2025) closes the map as if its labels were grey values, so that higher labels grow
over lower ones and the result depends on the order of the classes. `majority_filter` treats all labels alike.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densevl.errors import LabelError, OptionError


def majority_filter(labels: torch.Tensor, side: int = 3) -> torch.Tensor:
    """Each pixel takes the most frequent label of the square around it; it keeps its own if that is among the best.

        labels: (H, W) integer. side: odd, of the square; there are no labels beyond the border.

    Returns:
        (H, W) of the same dtype; among several best labels other than the pixel's own, the smallest.

    Raises:
        LabelError: it is not such a map.
        OptionError: the side is even.
    """
    _check(labels, side)
    reach = side // 2
    missing = int(labels.min()) - 1 if labels.numel() else -1
    padded = F.pad(labels.long(), (reach,) * 4, value=missing)
    height, width = labels.shape
    around = torch.stack(
        [padded[dy : dy + height, dx : dx + width] for dy in range(side) for dx in range(side)]
    )  # (side^2, H, W)
    own = (around == labels).sum(dim=0)
    best, most = labels.long(), own
    for candidate in around:
        count = (around == candidate).sum(dim=0)
        count = torch.where(candidate == missing, 0, count)
        # the pixel's own label goes only to a strict majority; between others, the smaller one
        better = (count > most) | ((count == most) & (most > own) & (candidate < best))
        best, most = torch.where(better, candidate, best), torch.where(better, count, most)
    return best.to(labels.dtype)


def grey_closing(labels: torch.Tensor, side: int = 3) -> torch.Tensor:
    """Maximum, then minimum, over squares, with labels read as grey values, as in ITACLIP's code, to reproduce it.

    As there, labels are 8-bit: -1 and labels above 255 wrap around.

    Args:
        labels: (H, W) integer. side: odd; pixels beyond the border take no part.

    Returns:
        (H, W) of the same dtype, within 0..255.

    Raises:
        LabelError: it is not such a map.
        OptionError: the side is even.
    """
    _check(labels, side)
    grey = (labels.long() % 256).float()[None, None]
    grown = F.max_pool2d(grey, side, stride=1, padding=side // 2)
    closed = -F.max_pool2d(-grown, side, stride=1, padding=side // 2)
    return closed[0, 0].to(labels.dtype)


def _check(labels: torch.Tensor, side: int) -> None:
    if labels.ndim != 2 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise LabelError(f"labels are an (H, W) integer map, not {tuple(labels.shape)} {labels.dtype}")
    if side < 1 or side % 2 == 0:
        raise OptionError(f"side is {side}; it must be odd and at least 1")
