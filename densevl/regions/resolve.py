"""From named masks that overlap, nest and leave holes to a label map, to instances, or to a panoptic map.

Masks are unpacked a few rows of the image at a time, so neither masks nor classes are ever held at full size. Shape
letters: R regions, C classes, P pixels of some rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import OptionError, one_of
from densevl.proposals.base import Proposals
from densevl.regions.overlap import nms, suppress_parts
from densevl.stacking import back_to_front

Floats = npt.NDArray[np.float32]
SEMANTIC = ("sum", "mean", "max", "paint")
AT_ONCE = 2**23  # numbers held in one step
NOTHING = -1


@dataclass(frozen=True, eq=False)
class Instances:
    """Regions kept as objects, best first.

    Attributes: index (N,) int64 into the regions; labels (N,) int64; scores (N,) float32.
    """

    index: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    scores: Floats


@dataclass(frozen=True, eq=False)
class Panoptic:
    """A panoptic map.

    Attributes:
        ids: int32 (H, W), 0 where no segment is.
        segments: one dict per segment: id, label, score, area in pixels, regions (indices of its regions).
    """

    ids: npt.NDArray[np.int32]
    segments: tuple[dict[str, Any], ...]


def semantic(
    masks: Proposals, probs: Any, *, mode: str = "paint", nothing: Any = None, threshold: float = 0.0
) -> tuple[npt.NDArray[np.int16], Floats]:
    """One label per pixel, from the class probabilities of the masks over it.

    Args:
        masks: R masks of an (H, W) photo. probs: (R, C).
        mode: how overlapping masks combine, class by class. "sum" (MaskFormer) favours stacks of nested masks. "mean"
            divides by their number, which changes no winner, only what `threshold` sees. "max" takes the strongest.
            "paint" gives the pixel to the smallest mask.
        nothing: (R,) probability that the region is none of the classes; it competes.
        threshold: a pixel whose best class has less than this is labelled nothing.

    Returns:
        int16 labels (H, W), -1 for nothing and where there is no mask, and float32 confidence (H, W), 0..1: of the best
        class, 0 where there is no mask.

    Raises:
        OptionError: the mode is unknown, or probabilities and masks differ in number.
    """
    one_of(mode, SEMANTIC, "mode", OptionError)
    table = _table(masks, probs, nothing)
    if mode == "paint":
        top = masks.segment_map()
        scores = np.concatenate([np.zeros((1, table.shape[1]), np.float32), table])
        best = scores.argmax(axis=1)
        labels, confidence = best[top], scores.max(axis=1)[top]
        covered = top > 0
    else:
        height, width = masks.size
        labels, confidence = np.zeros(height * width, np.int64), np.zeros(height * width, np.float32)
        covered = np.zeros(height * width, bool)
        for pixels, met, over_RP in _strips(masks, table.shape[1]):
            few = table[met]
            scores_PC = _strongest(over_RP, few) if mode == "max" else over_RP.T.astype(np.float32) @ few
            count = over_RP.sum(axis=0)
            if mode == "mean":
                scores_PC /= np.maximum(count, 1)[:, None]
            labels[pixels], confidence[pixels] = scores_PC.argmax(axis=1), scores_PC.max(axis=1)
            covered[pixels] = count > 0
        labels, confidence, covered = (a.reshape(height, width) for a in (labels, confidence, covered))
    wins = covered & (labels < table.shape[1] - 1) & (confidence >= threshold)
    found = np.where(wins, labels, NOTHING).astype(np.int16)
    return found, np.where(covered, np.minimum(confidence, 1), 0).astype(np.float32)


def fill_holes(labels: npt.NDArray[np.int16], masks: Proposals, dense: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """The label map with pixels under no mask filled from a dense map of the same classes, (H, W) int16."""
    return np.where(masks.segment_map() > 0, labels, dense).astype(np.int16)


def instances(
    masks: Proposals,
    probs: Any,
    *,
    nothing: Any = None,
    quality: Any = None,
    top: int = 100,
    many: bool = False,
    threshold: float = 0.0,
    iou: float = 0.5,
    metric: str = "iou",
    parts: float | None = None,
) -> Instances:
    """The best named masks as objects, without those that repeat a better one of the same class.

    Args:
        masks, probs, nothing: as `semantic`. quality: (R,) factors of the score; None is 1.
        top: most objects kept. many: let a mask appear under several labels, as MaskFormer does; else only its best.
        threshold: lowest score. iou, metric: of the NMS within a class, see `overlap.nms`.
        parts: also drop regions of which more than this share (0.01..1) lies within a larger one of the same class.

    Raises:
        OptionError: probabilities and masks differ in number, the metric is unknown, or a number is out of range.
    """
    for name, value, low, high in (("threshold", threshold, 0, 1), ("iou", iou, 0, 1), ("parts", parts, 0.01, 1)):
        if name == "parts" and value is None:
            continue
        if not isinstance(value, Real) or isinstance(value, bool) or not low <= value <= high:
            raise OptionError(f"{name} is {value!r}; it must be a number within {low}..{high}")
    if not isinstance(top, Integral) or isinstance(top, bool) or top < 1:
        raise OptionError(f"top is {top!r}; it must be a whole number of at least 1")
    table = _table(masks, probs, nothing)
    weight = np.ones(len(masks), np.float32) if quality is None else np.asarray(quality, np.float32)
    classes = table.shape[1] - 1
    if many:
        index, labels = (part.ravel() for part in np.indices((len(masks), classes)))
    else:
        index, labels = np.arange(len(masks)), table.argmax(axis=1) if len(table) else np.zeros(0, np.int64)
    scores = table[index, labels] * weight[index]
    kept = (labels < classes) & (scores >= threshold) & (masks.areas[index] > 0)
    index, labels, scores = index[kept], labels[kept], scores[kept]
    first = np.lexsort((index, labels, -scores.astype(np.float64)))[: 10 * top]  # bounds the work of NMS
    index, labels, scores = index[first], labels[first], scores[first]
    found = nms(masks.select(index), scores, labels, threshold=iou, metric=metric)
    if parts is not None:
        few = masks.select(index[found])
        found = found[suppress_parts(few, labels[found], scores[found], threshold=parts)]
    found = found[:top]
    return Instances(index[found].astype(np.int64), labels[found].astype(np.int64), scores[found])


def panoptic(
    masks: Proposals,
    probs: Any,
    *,
    nothing: Any = None,
    quality: Any = None,
    stuff: Collection[int] = (),
    threshold: float = 0.0,
    visible: float = 0.8,
) -> Panoptic:
    """One segment per pixel: the most confident mask takes it; masks with too little left are dropped.

    Args:
        masks, probs, nothing, quality: as `instances`.
        stuff: classes whose masks form one segment.
        threshold: lowest confidence (Mask2Former's configs have 0.8, OVSeg 0).
        visible: a mask is dropped if less than this share of it is visible.
    """
    table = _table(masks, probs, nothing)
    best = table.argmax(axis=1) if len(table) else np.zeros(0, np.int64)
    weight = np.ones(len(masks), np.float32) if quality is None else np.asarray(quality, np.float32)
    confidence = table[np.arange(len(masks)), best] * weight
    areas = masks.areas
    kept = np.flatnonzero((best < table.shape[1] - 1) & (confidence >= threshold) & (areas > 0))
    order = kept[back_to_front(areas[kept], confidence[kept])]
    owner = np.array([-1, *kept], np.int32)[masks.select(kept).segment_map(confidence[kept])]
    seen = np.bincount(owner[owner >= 0], minlength=len(masks))
    groups: dict[int, list[int]] = {}
    for index in order[::-1]:
        if seen[index] >= visible * areas[index]:
            label = int(best[index])
            groups.setdefault(-1 - label if label in stuff else int(index), []).append(int(index))
    number = np.zeros(len(masks) + 1, np.int32)  # the last entry is for pixels without a mask
    segments = []
    for name, members in enumerate(groups.values(), start=1):
        number[members] = name
        score = float(confidence[members].max())
        area = int(seen[members].sum())
        segments.append({"id": name, "label": int(best[members[0]]), "score": score, "area": area, "regions": members})
    return Panoptic(number[owner], tuple(segments))


def _table(masks: Proposals, probs: Any, nothing: Any) -> Floats:
    """(R, C + 1) float32: the classes, then nothing."""
    array = np.asarray(probs, np.float32)
    if array.ndim != 2 or len(array) != len(masks) or array.shape[1] == 0:
        raise OptionError(f"probabilities are {array.shape} for {len(masks)} masks; give ({len(masks)}, classes)")
    nothing_R = np.zeros(len(masks), np.float32) if nothing is None else np.asarray(nothing, np.float32)
    return np.concatenate([array, nothing_R[:, None]], axis=1)


def _strips(masks: Proposals, columns: int) -> Iterator[tuple[slice, npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    """Slices of pixels in row order, of whole bytes each, with the masks that overlap them.

    The masks are indices of those whose boxes reach the slice, and the pixels that each covers, bool (len(met), P).
    """
    width, total = masks.size[1], masks.size[0] * masks.size[1]
    step = max(8, AT_ONCE // (len(masks) + columns) // 8 * 8)
    for start in range(0, total, step):
        stop = min(start + step, total)
        met = np.flatnonzero((masks.boxes[:, 1] < -(-stop // width)) & (masks.boxes[:, 3] > start // width))
        packed = masks.packed[met, start // 8 : -(-stop // 8)]
        yield slice(start, stop), met, np.unpackbits(packed, axis=1, count=stop - start).view(np.bool_)


def _strongest(over_RP: npt.NDArray[np.bool_], table: Floats) -> Floats:
    scores = np.zeros((over_RP.shape[1], table.shape[1]), np.float32)
    for row, over in zip(table, over_RP, strict=True):
        if over.any():
            scores[over] = np.maximum(scores[over], row)
    return scores
