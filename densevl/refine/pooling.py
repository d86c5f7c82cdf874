"""Scores averaged in segments, to add the evidence of a segment map, superpixels or masks to a model's."""

from __future__ import annotations

import torch

from densevl.errors import LabelError

SHARE = 0.6  # weight of a segment's mean in a pixel's score; with 1, things that cross segments are lost


def pool_in_segments(scores: torch.Tensor, segments: torch.Tensor, *, share: float = SHARE) -> torch.Tensor:
    """Mix each pixel's scores with the mean over its segment: (1 - share) * score + share * mean.

    Args:
        scores: (B, C, H, W) float; channels do not mix. segments: (H, W) integers, 0 and below for no segment; pixels
            there keep their scores. share: 0..1.

    Raises:
        LabelError: the map has another size or dtype.
    """
    if segments.shape != scores.shape[-2:] or segments.is_floating_point() or segments.dtype == torch.bool:
        raise LabelError(
            f"segments {tuple(segments.shape)} {segments.dtype} do not fit scores of {tuple(scores.shape[-2:])} "
            "pixels: give an (H, W) integer map"
        )
    inside = (segments > 0).flatten()
    if not inside.any():
        return scores
    _, owner, counts = segments.flatten()[inside].unique(return_inverse=True, return_counts=True)
    flat = scores.flatten(2)
    own = flat[..., inside]
    sums = own.new_zeros(*own.shape[:2], len(counts)).index_add_(2, owner, own)
    mixed = flat.clone()
    mixed[..., inside] = torch.lerp(own, (sums / counts)[..., owner], share)
    return mixed.view_as(scores)
