"""Boxes as evidence: a class that a person has boxed lies in its boxes and nowhere else; borders are the model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from densevl.errors import LabelError, suggest
from densevl.inference import WindowGrid
from densevl.proposals.base import Proposals
from densevl.regions.operators.pull import pull, token_plan

INSIDE, OUTSIDE = 1.0, -8.0  # log odds; fixed for the photo model on 40 PASCAL VOC photos


def box_prior(
    boxes: Mapping[str, Any], names: Sequence[str], windows: WindowGrid, size: tuple[int, int]
) -> torch.Tensor:
    """Log odds (C, Y, X) of each class at each token: 1 in its boxes, -8 outside, 0 for a class without a box.

    Args:
        boxes: of each class that has some, (4,) or (M, 4): x0, y0, x1, y1 in pixels. names: of the C classes.
        windows: those of the scores. size: (H, W) of the photo.

    Raises:
        LabelError: a name that is no class. ProposalError: a box without area, or outside the photo.
    """
    rows, cols = token_plan(windows, size)
    prior = torch.zeros(len(names), rows.shape[1], cols.shape[1])
    for name, own in boxes.items():
        if name not in names:
            raise LabelError(f"boxes= has '{name}', which is none of the labels{suggest(name, names)}")
        share = pull(Proposals.from_boxes(own, size), rows, cols).amax(dim=0)
        prior[list(names).index(name)] = torch.lerp(
            torch.full_like(share, OUTSIDE), torch.full_like(share, INSIDE), share
        )
    return prior
