"""Suppression of regions that repeat others: NMS, and BIRDet's suppression of parts.

Ties go to the larger area, then to the smaller index, so the result does not depend on the order of floating point
operations. Shape letters: R regions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from densevl.errors import OptionError, one_of
from densevl.proposals.base import Proposals
from densevl.proposals.suppress import Ints, suppressed

METRICS = ("iou", "ios")


def ranking(scores: npt.ArrayLike, areas: Ints) -> Ints:
    """Indices from best to worst: by score, then the larger area, then the smaller index."""
    given = np.asarray(scores, np.float64)
    return np.lexsort((np.arange(len(given)), -areas, -given))


def nms(
    masks: Proposals,
    scores: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    *,
    threshold: float = 0.5,
    metric: str = "iou",
) -> Ints:
    """Greedy non-maximum suppression on masks.

    Args:
        masks: R masks. scores: (R,), higher is better. labels: (R,) integers; only masks with the same label compete.
            None lets all compete.
        threshold: a mask is dropped if its overlap with a better one is above this.
        metric: "iou", or "ios", the intersection over the smaller of the two.

    Returns:
        int64 indices of the masks kept, best first. Empty masks overlap nothing and stay.

    Raises:
        OptionError: the metric is unknown.
    """
    one_of(metric, METRICS, "metric", OptionError)
    return suppressed(masks, ranking(scores, masks.areas), threshold, labels, metric)


def suppress_parts(
    masks: Proposals, labels: npt.ArrayLike, scores: npt.ArrayLike | None = None, *, threshold: float = 0.8
) -> Ints:
    """Drop regions that lie inside a larger one of the same label: the wheel of a car that is called a car too.

    A is dropped if |A and B| / |A| is above the threshold for a kept, larger B (Zeng et al., "Boosting open-vocabulary
    object detection by handling background samples", BIRDet, 2024). Unlike IoU this does not ask whether B is mostly A.

    Args:
        labels: (R,) integers; those below 0 take no part. scores: (R,), decide which of two equal masks is kept.

    Returns:
        int64 indices of the masks kept, in their original order.
    """
    group = np.asarray(labels, np.int64)
    given = np.zeros(len(masks)) if scores is None else np.asarray(scores, np.float64)
    order = np.lexsort((np.arange(len(masks)), -given, -masks.areas))
    kept = suppressed(masks, order[group[order] >= 0], threshold, group, "ios")
    return np.sort(np.concatenate([kept, np.flatnonzero(group < 0)]))
