"""Average precision of masks or boxes by COCO's and LVIS's rules, from faster-coco-eval or else pycocotools.

In LVIS (Gupta et al., 2019) categories are annotated in some images only. A detection counts in images that have its
category or were searched for it without success (neg_category_ids). Where not every object is marked
(not_exhaustive_category_ids), an unmatched detection is neither right nor wrong. Only faster-coco-eval supports that;
the limit of the best 300 detections per image, over all categories, is applied here.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import DatasetError, EvaluationError, MissingExtraError, suggest

KINDS = ("segm", "bbox")
BACKENDS = ("auto", "faster", "pycocotools")
CAP = 100
"""Detections that count, per image and category."""
LVIS_CAP = 300
"""Detections per image that count in LVIS, over all categories."""
RARITIES = {"r": "rare", "c": "common", "f": "frequent"}
Table = dict[str, float]
Floats = npt.NDArray[np.float64]
_SIZES = ("", " small", " medium", " large")
_NAN = float("nan")


def average_precision(
    truth: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    kind: str = "segm",
    *,
    cap: int = CAP,
    federated: bool = False,
    backend: str = "auto",
) -> tuple[Table, dict[Any, Table]]:
    """AP and AR, 0..1, NaN where a size or category has no truth.

    Args:
        truth: a COCO dict with images, categories and annotations (with area, iscrowd and segmentation or bbox).
        found: COCO results with image_id, category_id, score and segmentation (RLE) or bbox.
        kind: "segm" or "bbox". cap: how many of the best detections count, per image and category.
        federated: the truth is LVIS's; `cap` then applies to all categories of an image, and AP is also given for rare,
            common and frequent ones. backend: which implementation counts; figures agree.

    Returns:
        Over all categories AP, AP50, AP75, by size ("AP small"), AR1, AR10, AR{cap} and by size; and for each category
        id AP and AP50.

    Raises:
        EvaluationError: kind or backend is unknown, "faster" is not installed, or results belong to images that the
            truth does not have.
        DatasetError: federated, but the truth is not LVIS's.
        MissingExtraError: federated without faster-coco-eval.
    """
    for value, allowed, what in ((kind, KINDS, "kind"), (backend, BACKENDS, "backend")):
        if value not in allowed:
            raise EvaluationError(f"no {what} '{value}'{suggest(value, allowed)}; it is one of {', '.join(allowed)}")
    known = {image["id"] for image in truth["images"]}
    odd = next((entry["image_id"] for entry in found if entry["image_id"] not in known), None)
    if odd is not None:
        raise EvaluationError(f"results are given for image {odd}, which the truth does not have")
    kept = _best(truth, found, cap) if federated else found
    if kept:
        precision, recall, categories = _accumulated(truth, kept, kind, cap, backend, federated)
    else:
        precision, recall, categories = _of_nothing(truth)
    table = _summary(precision, recall, cap)
    if federated:
        kinds = {category["id"]: category.get("frequency") for category in truth["categories"]}
        for letter, name in RARITIES.items():
            columns = [index for index, own in enumerate(categories) if kinds[own] == letter]
            table[f"AP {name}"] = _mean(precision[:, :, columns, 0, -1])
    rows = {
        category: {"AP": _mean(precision[:, :, index, 0, -1]), "AP50": _mean(precision[0, :, index, 0, -1])}
        for index, category in enumerate(categories)
    }
    return table, rows


def _best(truth: Mapping[str, Any], found: Sequence[Mapping[str, Any]], cap: int) -> list[Mapping[str, Any]]:
    """The best results of each image, over all categories.

    Raises:
        DatasetError: an image of the truth does not say which categories were searched for.
    """
    for image in truth["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if key not in image:
                raise DatasetError(f"image {image['id']} has no {key}: this is not an LVIS file")
    by_image: dict[Any, list[Mapping[str, Any]]] = {}
    for entry in found:
        by_image.setdefault(entry["image_id"], []).append(entry)
    return [entry for own in by_image.values() for entry in sorted(own, key=lambda row: -row["score"])[:cap]]


def _accumulated(
    truth: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    kind: str,
    cap: int,
    backend: str,
    federated: bool,
) -> tuple[Floats, Floats, list[Any]]:
    """Precision (IoU, recall, category, size, cap), recall without its second axis, and ids of categories; -1 where
    there is no truth."""
    coco, evaluator = _backend("faster" if federated else backend)
    how = {"lvis_style": True} if federated else {}
    with contextlib.redirect_stdout(io.StringIO()):  # both print tables
        reference = coco()
        reference.dataset = {"info": {}, "licenses": [], **{key: list(value) for key, value in truth.items()}}
        reference.createIndex()
        judge = evaluator(reference, reference.loadRes([dict(entry) for entry in found]), kind, **how)
        judge.params.maxDets = [1, 10, cap]
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"], judge.eval["recall"], list(judge.params.catIds)


def _of_nothing(truth: Mapping[str, Any]) -> tuple[Floats, Floats, list[Any]]:
    """The same if nothing was found: precision is 0 where there is truth."""
    categories = sorted(category["id"] for category in truth["categories"])
    precision, recall = np.full((10, 101, len(categories), 4, 3), -1.0), np.full((10, len(categories), 4, 3), -1.0)
    limits = ((0, np.inf), (0, 32**2), (32**2, 96**2), (96**2, np.inf))
    for entry in truth["annotations"]:
        if not entry.get("iscrowd", 0):
            column = categories.index(entry["category_id"])
            sizes = [number for number, (low, high) in enumerate(limits) if low <= entry["area"] <= high]
            precision[:, :, column, sizes] = recall[:, column, sizes] = 0
    return precision, recall, categories


def _summary(precision: Floats, recall: Floats, cap: int) -> Table:
    table = {f"AP{size}": _mean(precision[:, :, :, number, -1]) for number, size in enumerate(_SIZES)}
    table["AP50"], table["AP75"] = _mean(precision[0, :, :, 0, -1]), _mean(precision[5, :, :, 0, -1])
    for number, name in enumerate(("AR1", "AR10", f"AR{cap}")):
        table[name] = _mean(recall[:, :, 0, number])
    table |= {f"AR{size}": _mean(recall[:, :, number, -1]) for number, size in enumerate(_SIZES) if size}
    order = ("AP", "AP50", "AP75")
    return {name: table[name] for name in (*order, *(name for name in table if name not in order))}


def _mean(values: Floats) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else _NAN


def _backend(name: str) -> tuple[Any, Any]:
    if name != "pycocotools":
        try:
            from faster_coco_eval import COCO, COCOeval_faster

            return COCO, COCOeval_faster
        except ImportError as error:
            if name == "faster":
                raise MissingExtraError("faster-coco-eval", "eval", "AP as LVIS has it") from error
    from pycocotools.coco import COCO as SLOW
    from pycocotools.cocoeval import COCOeval

    return SLOW, COCOeval
