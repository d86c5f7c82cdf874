"""LVIS (Gupta et al., 2019): categories are looked for in some images only, and AP has to mind that.

Each image lists the categories it was searched for in vain (neg_category_ids) and those of which not every object is
marked (not_exhaustive_category_ids). A detection of a category counts only in images that have the category or were
searched for it; where not every object is marked, one that meets none is neither right nor wrong. The first is a
selection, the second what COCO's crowds do, so COCO's evaluation counts LVIS once the truth is put so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from densevl.errors import DatasetError

CAP = 300
"""Detections of an image that count, over all categories."""
RARITIES = {"r": "rare", "c": "common", "f": "frequent"}


def as_coco(
    truth: Mapping[str, Any], found: Sequence[Mapping[str, Any]], cap: int = CAP
) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """Truth and results such that COCO's AP is that of LVIS.

    Args:
        truth: LVIS's dict; found: COCO results; cap: the best of an image that count.

    Raises:
        DatasetError: an image without the two lists.
    """
    has: dict[Any, set[Any]] = {}
    for entry in truth["annotations"]:
        has.setdefault(entry["image_id"], set()).add(entry["category_id"])
    looked_for: dict[Any, set[Any]] = {}
    crowds: list[dict[str, Any]] = []
    for image in truth["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if key not in image:
                raise DatasetError(f"image {image['id']} has no {key}: this is no LVIS file")
        looked_for[image["id"]] = has.get(image["id"], set()) | set(image["neg_category_ids"])
        for category in image["not_exhaustive_category_ids"]:
            crowds.append(_everywhere(image, category, len(truth["annotations"]) + len(crowds) + 1))
    by_image: dict[Any, list[Mapping[str, Any]]] = {}
    for entry in found:
        by_image.setdefault(entry["image_id"], []).append(entry)
    kept = [
        entry
        for image, entries in by_image.items()
        for entry in sorted(entries, key=lambda row: -row["score"])[:cap]
        if entry["category_id"] in looked_for[image]
    ]
    return {**truth, "annotations": [*truth["annotations"], *crowds]}, kept


def _everywhere(image: Mapping[str, Any], category: Any, number: int) -> dict[str, Any]:
    """A crowd over the whole image: whatever meets no object lies in it."""
    height, width = int(image["height"]), int(image["width"])
    return {
        **{"id": number, "image_id": image["id"], "category_id": category, "iscrowd": 1},
        **{"area": float(height * width), "bbox": [0.0, 0.0, float(width), float(height)]},
        "segmentation": {"size": [height, width], "counts": [0, height * width]},
    }
