"""Panoptic quality (Kirillov et al., 2019), by the rules of COCO's panoptic evaluation.

Sums of IoU are kept in fixed point, so counts add up exactly in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import DatasetError
from densevl.evaluation.metrics.confusion import Counts

UNIT = 2**40
"""IoUs are rounded to 1 / UNIT; eight million matches fit into an int64 sum."""
VOID = 0


@dataclass(frozen=True)
class Segment:
    """Attributes: id in the map; category index; crowd: a region of many objects, never missed and never matched."""

    id: int
    category: int
    crowd: bool = False


def panoptic_counts(
    truth: npt.NDArray[Any],
    truth_segments: Sequence[Segment],
    found: npt.NDArray[Any],
    found_segments: Sequence[Segment],
    categories: int,
) -> Counts:
    """Count one image: int64 (4, categories): sum of IoU in 1 / UNIT, matched, found only, missed.

    Two segments of one category match if the truth is not a crowd and their IoU, without void pixels of the truth, is
    over 0.5. A found segment with more than half its area in void, or in crowds of its category, does not count.

    Args:
        truth, found: non-negative segment ids (H, W), 0 is void; segments: a description for every id but 0.

    Raises:
        DatasetError: the ids of a map and its segments differ, or the maps have different sizes.
    """
    if truth.shape != found.shape:
        raise DatasetError(f"panoptic maps of sizes {truth.shape} and {found.shape}: they must be of one size")
    of_truth, of_found = _described(truth, truth_segments, "truth"), _described(found, found_segments, "found")
    pairs, areas = np.unique(np.stack([truth.ravel(), found.ravel()]), axis=1, return_counts=True)
    overlap = {(int(t), int(f)): int(area) for (t, f), area in zip(pairs.T, areas, strict=True)}
    truth_area, found_area = _areas(truth), _areas(found)
    counts = np.zeros((4, categories), np.int64)
    matched_truth, matched_found = set(), set()
    for (t, f), both in overlap.items():
        if t == VOID or f == VOID or of_truth[t].crowd or of_truth[t].category != of_found[f].category:
            continue
        union = truth_area[t] + found_area[f] - both - overlap.get((VOID, f), 0)
        if 2 * both > union:
            counts[0, of_truth[t].category] += round(both / union * UNIT)
            counts[1, of_truth[t].category] += 1
            matched_truth.add(t)
            matched_found.add(f)
    for t, segment in of_truth.items():
        if t not in matched_truth and not segment.crowd:
            counts[3, segment.category] += 1
    for f, segment in of_found.items():
        if f not in matched_found:
            crowds = [t for t, other in of_truth.items() if other.crowd and other.category == segment.category]
            excused = sum(overlap.get((t, f), 0) for t in (VOID, *crowds))
            if 2 * excused <= found_area[f]:
                counts[2, segment.category] += 1
    return counts


def panoptic_quality(counts: Counts, kept: Sequence[int] | None = None) -> dict[str, float]:
    """PQ, SQ and RQ, 0..1, means over the categories that occur in truth or prediction; NaN if none does.

    Args:
        counts: sums of `panoptic_counts`; kept: categories to include (things or stuff), None for all.
    """
    sums, matched, extra, missed = (row if kept is None else row[list(kept)] for row in counts)
    weight = matched + extra / 2 + missed / 2
    here = weight > 0
    if not here.any():
        return dict.fromkeys(("PQ", "SQ", "RQ"), float("nan"))
    total = sums[here] / UNIT
    quality = total / np.maximum(matched[here], 1)
    return {
        "PQ": float((total / weight[here]).mean()),
        "SQ": float(quality.mean()),
        "RQ": float((matched[here] / weight[here]).mean()),
    }


def coco_ids(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Segment ids of a panoptic PNG: R + 256 G + 65536 B, uint8 (H, W, 3) to int64 (H, W)."""
    return picture.astype(np.int64) @ np.array([1, 256, 65536])


def _described(ids: npt.NDArray[Any], segments: Sequence[Segment], what: str) -> Mapping[int, Segment]:
    table = {segment.id: segment for segment in segments}
    here = {int(number) for number in np.unique(ids)} - {VOID}
    if here != set(table):
        odd = min(here ^ set(table))
        where = "in the map and not described" if odd in here else "described and not in the map"
        raise DatasetError(f"segment {odd} of the {what} is {where}")
    return table


def _areas(ids: npt.NDArray[Any]) -> dict[int, int]:
    numbers, areas = np.unique(ids, return_counts=True)
    return dict(zip(numbers.tolist(), areas.tolist(), strict=True))
