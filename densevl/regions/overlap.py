"""Which regions repeat others: intersections of packed masks, NMS, and BIRDet's suppression of parts.

Nothing is unpacked: intersections are counted in the bytes of the rows that a mask covers, and only for pairs whose
boxes meet. Equal scores are settled by the larger area, then by the smaller index, so the result does not depend on the
order of floating point. Shape letters: R regions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from densevl.errors import OptionError, suggest
from densevl.proposals.base import Proposals
from densevl.proposals.packing import popcount

Ints = npt.NDArray[np.int64]
METRICS = ("iou", "ios")
AT_ONCE = 2**25  # bytes of packed masks compared in one step


def intersections(masks: Proposals, one: int, others: npt.ArrayLike) -> Ints:
    """Pixels that mask `one` shares with each of `others`: int64 (len(others),)."""
    indices = np.asarray(others, np.int64).reshape(-1)
    shared = np.zeros(len(indices), np.int64)
    x0, y0, x1, y1 = masks.boxes[one]
    box = masks.boxes[indices]
    meets = (box[:, 0] < x1) & (box[:, 2] > x0) & (box[:, 1] < y1) & (box[:, 3] > y0)
    width = masks.size[1]
    first, last = int(np.floor(y0)) * width // 8, -(-int(np.ceil(y1)) * width // 8)
    met = np.flatnonzero(meets)
    step = max(1, AT_ONCE // max(1, last - first))
    for start in range(0, len(met), step):
        part = met[start : start + step]
        shared[part] = popcount(masks.packed[indices[part], first:last] & masks.packed[one, first:last])
    return shared


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
        masks: R masks. scores: (R,), higher is better. labels: (R,) integers: only masks of one label compete; None
            lets all compete.
        threshold: a mask goes if its overlap with a better one is above this.
        metric: "iou", or "ios", the intersection over the smaller of the two.

    Returns:
        int64 indices of what is kept, best first. Empty masks overlap nothing and stay.

    Raises:
        OptionError: an unknown metric.
    """
    if metric not in METRICS:
        raise OptionError(f"metric is {metric!r}{suggest(str(metric), METRICS)}; it is one of {', '.join(METRICS)}")
    areas = masks.areas
    order = ranking(scores, areas)
    group = np.zeros(len(masks), np.int64) if labels is None else np.asarray(labels, np.int64)
    alive = np.ones(len(masks), bool)
    kept = []
    for place, index in enumerate(order):
        if not alive[index]:
            continue
        kept.append(index)
        rest = order[place + 1 :]
        rest = rest[alive[rest] & (group[rest] == group[index])]
        small, large = np.minimum(areas[rest], areas[index]), np.maximum(areas[rest], areas[index])
        if metric == "iou":  # it cannot be above the ratio of the areas
            near = small > threshold * large
            rest, small = rest[near], small[near]
        shared = intersections(masks, int(index), rest)
        whole = small if metric == "ios" else areas[rest] + areas[index] - shared
        alive[rest[shared > threshold * whole]] = False
    return np.array(kept, np.int64)


def suppress_parts(
    masks: Proposals, labels: npt.ArrayLike, scores: npt.ArrayLike | None = None, *, threshold: float = 0.8
) -> Ints:
    """Drop regions that lie inside a larger one of the same label: the wheel of a car that is called a car too.

    A is dropped if |A and B| / |A| is above the threshold for a kept, larger B (Zeng et al., "Boosting open-vocabulary
    object detection by handling background samples", BIRDet, 2024). Unlike IoU this does not ask whether B is mostly A.

    Args:
        labels: (R,) integers; those below 0 take no part. scores: (R,), settle which of two equal masks is kept.

    Returns:
        int64 indices of what is kept, in their own order.
    """
    areas, group = masks.areas, np.asarray(labels, np.int64)
    given = np.zeros(len(masks)) if scores is None else np.asarray(scores, np.float64)
    order = np.lexsort((np.arange(len(masks)), -given, -areas))
    alive = np.ones(len(masks), bool)
    for place, index in enumerate(order):
        if alive[index] and group[index] >= 0:
            rest = order[place + 1 :]
            rest = rest[alive[rest] & (group[rest] == group[index]) & (areas[rest] > 0)]
            shared = intersections(masks, int(index), rest)
            alive[rest[shared > threshold * areas[rest]]] = False
    return np.flatnonzero(alive)
