"""COCO's average precision of masks or boxes, by faster-coco-eval where installed, else by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from densevl.errors import suggest
from densevl.evaluation.faults import EvaluationError

KINDS = ("segm", "bbox")
BACKENDS = ("auto", "faster", "pycocotools")
NAMES = (
    *("AP", "AP50", "AP75", "AP small", "AP medium", "AP large"),
    *("AR1", "AR10", "AR100", "AR small", "AR medium", "AR large"),
)


def mask_ap(
    truth: Mapping[str, Any], found: Sequence[Mapping[str, Any]], kind: str = "segm", *, backend: str = "auto"
) -> dict[str, float]:
    """AP and AR of COCO, 0..1, NaN where a size or category has no truth.

    Args:
        truth: a COCO dict with images, categories and annotations (with area, iscrowd and segmentation or bbox).
        found: COCO results with image_id, category_id, score and segmentation (RLE) or bbox.
        kind: "segm" or "bbox". backend: which implementation counts; figures agree.

    Raises:
        EvaluationError: an unknown kind or backend, "faster" where it is not installed, or results for images that the
            truth does not have.
    """
    for value, allowed, what in ((kind, KINDS, "kind"), (backend, BACKENDS, "backend")):
        if value not in allowed:
            raise EvaluationError(f"no {what} '{value}'{suggest(value, allowed)}; it is one of {', '.join(allowed)}")
    known = {image["id"] for image in truth["images"]}
    odd = next((entry["image_id"] for entry in found if entry["image_id"] not in known), None)
    if odd is not None:
        raise EvaluationError(f"results are given for image {odd}, which the truth does not have")
    if not found:
        return {name: (0.0 if truth["annotations"] else float("nan")) for name in NAMES}
    coco, evaluator = _backend(backend)
    with contextlib.redirect_stdout(io.StringIO()):  # both print tables
        reference = coco()
        reference.dataset = {"info": {}, "licenses": [], **{key: list(value) for key, value in truth.items()}}
        reference.createIndex()
        judge = evaluator(reference, reference.loadRes([dict(entry) for entry in found]), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {name: (float(v) if v > -1 else float("nan")) for name, v in zip(NAMES, judge.stats, strict=False)}


def _backend(name: str) -> tuple[Any, Any]:
    if name != "pycocotools":
        try:
            from faster_coco_eval import COCO, COCOeval_faster

            return COCO, COCOeval_faster
        except ImportError as error:
            if name == "faster":
                raise EvaluationError("faster-coco-eval is not installed: pip install faster-coco-eval") from error
    from pycocotools.coco import COCO as SLOW
    from pycocotools.cocoeval import COCOeval

    return SLOW, COCOeval
