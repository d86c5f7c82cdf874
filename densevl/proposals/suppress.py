"""Masks that say the same twice taken out, by the overlap of the masks themselves or of their boxes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from densevl.proposals import packing
from densevl.proposals.base import Proposals

DUPLICATES = ("mask", "box", "none")


def unlike(proposals: Proposals, scores: npt.NDArray[np.floating], above: float) -> npt.NDArray[np.int64]:
    """Indices of masks none of which overlaps a better one kept by more than an IoU of `above`; best first.

    Greedy in the order of the scores, of equal ones the first. Exact, on packed masks; most pairs are decided by areas
    and boxes alone, and of the rest only rows that both boxes share are looked at. Two empty masks do not overlap.

    Args:
        proposals: M masks. scores: (M,). above: 0-1.

    Returns:
        int64 (kept,).
    """
    order = np.argsort(-scores, kind="stable")
    areas, boxes, packed = proposals.areas, proposals.boxes, proposals.packed
    width = proposals.size[1]
    waiting = order
    kept = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        low = np.maximum(boxes[waiting, :2], boxes[best, :2])
        high = np.minimum(boxes[waiting, 2:], boxes[best, 2:])
        shared = np.clip(np.ceil(high) - np.floor(low), 0, None).prod(axis=1)
        most = np.minimum(np.minimum(areas[waiting], areas[best]), shared)
        total = areas[waiting] + areas[best]
        near = np.flatnonzero(most > above * (total - most))  # the IoU if they overlap as much as they can
        again = np.zeros(len(waiting), np.bool_)
        for index in near:
            top, bottom = int(low[index, 1]), int(np.ceil(high[index, 1]))
            part = slice(top * width // 8, -(-bottom * width // 8))
            common = int(packing.popcount(packed[best, part] & packed[waiting[index], part]))
            again[index] = common > above * (total[index] - common)
        waiting = waiting[~again]
    return np.array(kept, np.int64)


def unlike_boxes(proposals: Proposals, scores: npt.NDArray[np.floating], above: float) -> npt.NDArray[np.int64]:
    """The same by the IoU of boxes, as the package `segment-anything` does it, down to its boxes a pixel short.

    It takes a ring for the disc inside it, and keeps two masks that differ by a stray pixel far away.
    """
    from torchvision.ops import nms

    boxes = torch.from_numpy(proposals.boxes - np.array([0, 0, 1, 1], np.float32)).clamp_(min=0)
    return nms(boxes, torch.from_numpy(np.asarray(scores, np.float32)), above).numpy()
