"""Fuse a detector's objectness and CLIP's class probabilities into one score, in log space.

Both judge the same boxes: the detector says whether there is an object, CLIP says which. RegionCLIP (CVPR 2022, equal
weights) and F-VLM (ICLR 2023) rank detections by their weighted geometric mean. Shape letters: N boxes, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from densevl.errors import ProposalError
from densevl.proposals.checks import as_array
from densevl.regions.fusion import ScoreSource, fuse

WEIGHT = 0.5
_SURE = 1 - 1e-6  # cap on objectness, so that background always has some probability


def as_tensor(given: Any, device: Any = None, *, what: str = "numbers") -> torch.Tensor:
    """Convert an array, a list, a tensor, or detectron2's `Boxes` to a float32 tensor.

    Raises:
        ProposalError: If it is anything else, or holds NaN or infinity.
    """
    if not isinstance(given, torch.Tensor):
        given = torch.from_numpy(as_array(given, what, "of numbers"))
    found = given.detach().to(device=device, dtype=torch.float32)
    if not bool(torch.isfinite(found).all()):
        raise ProposalError(f"{what} hold NaN or infinity: the detector overflowed, or its weights are damaged")
    return found


def objectness(scores: Any, background: int = 0) -> torch.Tensor:
    """Return how sure a detector is of each box, over all its classes: float32 (N,).

    Args:
        scores: probabilities, array or tensor: (N,), used directly, or (N, K) with a column for background.
        background: that column: 0 as in torchvision, -1 as in mmdet and detectron2.

    Raises:
        ProposalError: If the shape is another, or numbers are outside 0..1, such as logits.
    """
    found = as_tensor(scores, what="detector scores")
    if found.ndim not in (1, 2) or (found.ndim == 2 and found.shape[1] < 2):
        raise ProposalError(
            f"detector scores of shape {tuple(found.shape)}: must be (N,), or (N, classes and background)"
        )
    if not bool(((found >= 0) & (found <= 1 + 1e-4)).all()):
        raise ProposalError(
            f"detector scores span {float(found.min()):.4g} to {float(found.max()):.4g}: they must be "
            "probabilities, 0 to 1; take softmax or sigmoid first, or divide percentages by 100"
        )
    return (1 - found[:, background] if found.ndim == 2 else found).clamp(0, 1)


def fused_probs(
    objectness_N: torch.Tensor,
    probs: Any,
    nothing: Any = None,
    *,
    weight: float | Sequence[float] | torch.Tensor = WEIGHT,
) -> torch.Tensor:
    """Return probabilities of every class, and of background in the LAST column: float32 (N, C + 1), rows sum to 1.

    A class has objectness^(1 - w) * p^w, background (1 - objectness)^(1 - w) * nothing^w, normalised. If CLIP had no
    background words, background is (1 - objectness) alone.

    Args:
        objectness_N: of each box, 0..1. probs: (N, C) CLIP's. nothing: (N,) CLIP's probability of no class, or None.
        weight: w, CLIP's share, or one for each class (F-ViT: 0.2 for classes the detector was trained on, 0.45 for
            others).

    Raises:
        ProposalError: If the numbers of boxes differ, or a weight is outside 0..1.
    """
    p_NC = as_tensor(probs, objectness_N.device, what="probabilities")
    if p_NC.ndim != 2 or len(p_NC) != len(objectness_N):
        raise ProposalError(f"{len(objectness_N)} boxes with probabilities {tuple(p_NC.shape)}: must be (N, classes)")
    clip_C = torch.as_tensor(weight, dtype=torch.float32, device=p_NC.device).expand(p_NC.shape[1])
    if not bool(((clip_C >= 0) & (clip_C <= 1)).all()):
        raise ProposalError(f"weight is {weight}; it must be CLIP's share, 0 to 1")
    rest_N = torch.zeros(len(p_NC), device=p_NC.device) if nothing is None else as_tensor(nothing, p_NC.device)
    worded = bool((rest_N > 0).any())
    rest_N = torch.where(p_NC.sum(dim=1) > 0, rest_N, 1.0)  # an empty region
    object_N1 = objectness_N.clamp(0, _SURE)[:, None]
    detector = torch.cat([object_N1.log().expand_as(p_NC), (-object_N1).log1p()], dim=1)
    clip = torch.cat([p_NC, rest_N[:, None]], dim=1).log()
    own = torch.cat([clip_C, clip_C.mean()[None] if worded else torch.zeros(1, device=p_NC.device)])
    return fuse([ScoreSource(detector, 1 - own), ScoreSource(clip, own)]).exp()
