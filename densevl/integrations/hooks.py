"""A function for RoI heads with background LAST, as in mmdet and detectron2: boxes in, class scores out.

Neither package is imported. Both end alike: boxes (N, 4) and scores (N, C + 1) go to a function that thresholds them
and runs NMS in each class (`multiclass_nms`, `fast_rcnn_inference`). The hook replaces the head's scores there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from densevl.errors import ProposalError
from densevl.images import read_image
from densevl.integrations.scores import WEIGHT, fused_probs, objectness
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Labels
from densevl.proposals.checks import box_corners, refuse_normalised
from densevl.vocabulary import LabelSet


class RoiScores(NamedTuple):
    """Result of a hook, as tensors or arrays like the scores it was given.

    Attributes:
        labels: int64 (N,), index into the classes; C, one past the last, is background.
        scores: float32 (N,), probability of the label. probs: float32 (N, C + 1), rows sum to 1, background last.
    """

    labels: Any
    scores: Any
    probs: Any


def roi_hook(
    classify: RegionClassifier,
    labels: Labels,
    *,
    weight: float | Sequence[float] = WEIGHT,
    background: BackgroundSpec = "auto",
) -> Callable[[Any, Any, Any], RoiScores]:
    """Make a hook that names the boxes of an RoI head.

    Args:
        classify: names regions; its proposer is not used. labels: the classes.
        weight: CLIP's share beside the detector's, or one for each class; see `fused_probs`.
        background: words that compete with the classes; a threshold in it has no effect here.

    Returns:
        hook(image, boxes, scores) -> RoiScores, a function without state. image: RGB, of the size that boxes refer to,
        as for `read_image`. boxes: (N, 4) x0, y0, x1, y1 in pixels, an array, a tensor, or detectron2's Boxes; those
        outside the image are background. scores: (N,) objectness, or (N, K + 1) probabilities with background last,
        where K are the head's own classes; one column besides background is enough.

    Raises:
        LabelError: If the labels are unusable. The hook raises ProposalError if boxes or scores do not fit.
    """
    label_set = LabelSet.parse(labels)

    def hook(image: Any, boxes: Any, scores: Any) -> RoiScores:
        found = objectness(scores, background=-1)
        rgb = read_image(image)
        if len(getattr(boxes, "shape", ())) == 2 and boxes.shape[1] > 4:
            raise ProposalError(
                f"boxes of shape {tuple(boxes.shape)}: must be ({len(found)}, 4), one box for all classes; if there is "
                "a box for each class, take that of the best"
            )
        corners = box_corners(boxes)
        if len(corners) != len(found):
            raise ProposalError(f"boxes of shape {corners.shape} for {len(found)} scores: ({len(found)}, 4)")
        refuse_normalised(corners, rgb.shape[:2])
        if len(found):
            cut = np.clip(corners, 0, [rgb.shape[1], rgb.shape[0]] * 2)
            seen = np.all(cut[:, 2:] > cut[:, :2], axis=1)  # proposals outside the image are background
            result = classify(rgb, label_set, boxes=cut[seen], background=background)
            scores_NC, nothing_N = np.zeros((len(seen), len(label_set)), np.float32), np.zeros(len(seen), np.float32)
            scores_NC[seen], nothing_N[seen] = result.scores, result.nothing
            probs = fused_probs(found, scores_NC, nothing_N, weight=weight)
        else:
            probs = torch.zeros(0, len(label_set) + 1, device=found.device)
        best, index = probs.max(dim=1)
        parts = (index, best, probs)
        if isinstance(getattr(scores, "tensor", scores), torch.Tensor):
            return RoiScores(*parts)
        return RoiScores(*(np.asarray(part.cpu()) for part in parts))

    return hook
