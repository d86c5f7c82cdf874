"""Suppression of duplicate masks, by the overlap of the masks themselves or of their boxes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from densevl.proposals import packing
from densevl.proposals.base import Proposals

Ints = npt.NDArray[np.int64]
DUPLICATES = ("mask", "box", "none")
AT_ONCE = 2**25  # bytes of packed masks compared in one step


def intersections(masks: Proposals, one: int, others: npt.ArrayLike) -> Ints:
    """Pixels that mask `one` shares with each of `others`: int64 (len(others),).

    Nothing is unpacked: only the bytes of the rows that `one` covers are read, for masks whose boxes intersect.
    """
    indices = np.asarray(others, np.int64).reshape(-1)
    shared = np.zeros(len(indices), np.int64)
    x0, y0, x1, y1 = masks.boxes[one]
    box = masks.boxes[indices]
    met = np.flatnonzero((box[:, 0] < x1) & (box[:, 2] > x0) & (box[:, 1] < y1) & (box[:, 3] > y0))
    width = masks.size[1]
    first, last = int(np.floor(y0)) * width // 8, -(-int(np.ceil(y1)) * width // 8)
    step = max(1, AT_ONCE // max(1, last - first))
    for start in range(0, len(met), step):
        part = met[start : start + step]
        shared[part] = packing.popcount(masks.packed[indices[part], first:last] & masks.packed[one, first:last])
    return shared


def suppressed(
    masks: Proposals, order: Ints, above: float, labels: npt.ArrayLike | None = None, metric: str = "iou"
) -> Ints:
    """Drop from `order`, best first, the masks that overlap a better one kept by more than `above`.

    Exact; areas and boxes alone decide most pairs. Empty masks overlap nothing and stay.

    Args:
        order: int64, indices of masks. above: 0-1. labels: (M,) integers: only masks with the same label compete; None
            lets all compete. metric: "iou", or "ios", the intersection over the smaller of the two.
    """
    areas, boxes = masks.areas, masks.boxes
    group = np.zeros(len(masks), np.int64) if labels is None else np.asarray(labels, np.int64)
    alive = np.ones(len(masks), bool)
    for place, index in enumerate(order):
        if not alive[index]:
            continue
        rest = order[place + 1 :]
        rest = rest[alive[rest] & (group[rest] == group[index])]
        low, high = np.maximum(boxes[rest, :2], boxes[index, :2]), np.minimum(boxes[rest, 2:], boxes[index, 2:])
        most = np.clip(np.ceil(high) - np.floor(low), 0, None).prod(axis=1)
        small, total = np.minimum(areas[rest], areas[index]), areas[rest] + areas[index]
        most = np.minimum(most, small)
        near = most > above * (small if metric == "ios" else total - most)  # at the largest overlap they can have
        rest, small, total = rest[near], small[near], total[near]
        shared = intersections(masks, int(index), rest)
        alive[rest[shared > above * (small if metric == "ios" else total - shared)]] = False
    return order[alive[order]]


def unlike(proposals: Proposals, scores: npt.NDArray[np.floating], above: float) -> Ints:
    """Indices of the masks that overlap no better one kept by more than an IoU of `above`; best first.

    Greedy in the order of the scores; ties go to the first; see `suppressed`.

    Args:
        proposals: M masks. scores: (M,). above: 0-1.

    Returns:
        int64 (kept,).
    """
    return suppressed(proposals, np.argsort(-scores, kind="stable"), above)


def unlike_boxes(proposals: Proposals, scores: npt.NDArray[np.floating], above: float) -> Ints:
    """The same by the IoU of boxes, as in the package `segment-anything`, including its boxes that are a pixel short.

    It confuses a ring with the disc inside it, and keeps two masks that differ by a stray pixel far away.
    """
    import torch
    from torchvision.ops import nms

    boxes = torch.from_numpy(proposals.boxes - np.array([0, 0, 1, 1], np.float32)).clamp_(min=0)
    return nms(boxes, torch.from_numpy(np.asarray(scores, np.float32)), above).numpy()
