"""Majority vote: every given region takes the label that most of its pixels have (CorrCLIP, ICCV 2025)."""

from __future__ import annotations

import torch

from densevl.errors import LabelError
from densevl.stacking import back_to_front


def majority_vote(labels: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Give each region its most frequent label; ties go to the smallest, where -1 (nothing) is one of the labels.

    Args:
        labels: (H, W) integer label map, -1 for nothing.
        regions: (H, W) integer segment map, in which ids may have gaps and negative ones mean "no region"; or
            (M, H, W) bool masks. Each mask votes with all its pixels, and where masks overlap the one with the fewest
            pixels decides; of equals, the first. An empty mask changes nothing.

    Returns:
        (H, W) of the labels' dtype; pixels in no region keep their label.

    Raises:
        LabelError: labels or regions have another shape or dtype.
    """
    integral = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.ndim != 2 or not integral:
        raise LabelError(f"labels are an (H, W) integer map, not {tuple(labels.shape)} {labels.dtype}")
    if regions.dtype == torch.bool and regions.ndim == 3 and regions.shape[1:] == labels.shape:
        return _vote_masks(labels, regions)
    if regions.shape != labels.shape or regions.is_floating_point() or regions.dtype == torch.bool:
        raise LabelError(
            f"regions {tuple(regions.shape)} {regions.dtype} do not fit labels {tuple(labels.shape)}: give an (H, W) "
            "integer segment map or (M, H, W) bool masks"
        )
    covered = regions >= 0
    if not covered.any():
        return labels.clone()
    _, segment = regions[covered].unique(return_inverse=True)
    winners = _winners(labels[covered], segment, int(segment.max()) + 1)
    voted = labels.clone()
    voted[covered] = winners[segment]
    return voted


def _winners(labels_P: torch.Tensor, segment_P: torch.Tensor, segments: int) -> torch.Tensor:
    """The most frequent label of each segment, ties to the smallest: (segments,)."""
    values, index = labels_P.unique(return_inverse=True)
    counts = torch.bincount(segment_P * len(values) + index, minlength=segments * len(values))
    return values[counts.view(segments, len(values)).argmax(dim=1)]


def _vote_masks(labels: torch.Tensor, masks_MHW: torch.Tensor) -> torch.Tensor:
    areas = masks_MHW.flatten(1).sum(dim=1)
    order = torch.from_numpy(back_to_front(areas.numpy(force=True))).to(areas.device)
    masks_MHW = masks_MHW[order[areas[order] > 0]]
    if not len(masks_MHW):
        return labels.clone()
    mask, pixel = masks_MHW.flatten(1).nonzero(as_tuple=True)
    winners = _winners(labels.flatten()[pixel], mask, len(masks_MHW))
    ranks = torch.arange(1, len(masks_MHW) + 1, device=labels.device, dtype=torch.int32)
    top = (masks_MHW * ranks[:, None, None]).amax(dim=0) - 1
    return torch.where(top >= 0, winners[top.clamp(min=0)], labels)
