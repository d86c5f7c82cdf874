"""Names for the boxes or masks of a `supervision.Detections`, whoever found them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional as F

from densevl.errors import MissingExtraError, ProposalError
from densevl.images import read_image
from densevl.integrations.scores import fused_probs, objectness
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Labels
from densevl.proposals import Proposals
from densevl.results import UNLABELLED
from densevl.vocabulary import LabelSet

try:
    import supervision as sv
except ImportError as error:
    raise MissingExtraError("supervision", "viz", "densevl.integrations.supervision") from error

CLASS_NAME, EMBEDDING, BEFORE = "class_name", "embedding", "proposal_confidence"


def label_detections(
    image: Any,
    detections: sv.Detections,
    labels: Labels,
    classify: RegionClassifier | None = None,
    *,
    background: BackgroundSpec = "auto",
    weight: float | None = None,
    drop_nothing: bool = False,
) -> sv.Detections:
    """Name detections: a copy, row for row, with classes in place of what it had.

    Its class_id, int (N,), counts the labels from 0; a detection that is none of them has the id one past the last, and
    the name "nothing". Its confidence, float32 (N,), is the probability of the label, or, for "nothing", of what won
    instead (0 for an empty mask or a box outside the image). data["class_name"] holds strings (N,), data["embedding"]
    float32 unit rows (N, E) that can be compared with words and with each other (zeros for empty ones), and
    data["proposal_confidence"] the confidence as it was, if there was one. Everything else is taken over.

    Args:
        image: what was looked at, as `read_image` takes it. Arrays are RGB: pass frame[:, :, ::-1] of OpenCV's BGR.
        detections: with masks, those are named: bool (N, H, W), or a `CompactMask`, which is read one mask at a time
            and stays compact in the copy. Without, boxes; parts outside the image are cut off.
        labels: the classes. classify: names regions; None is `RegionClassifier("auto")`, loaded once.
        background: what competes with the labels; see `RegionClassifier`.
        weight: None gives CLIP's probabilities; a number 0..1 mixes in the detections' own confidence, (1 - weight)
            being its say: see `fused_probs`.
        drop_nothing: leave out the rows that are "nothing".

    Raises:
        LabelError: unusable labels. ProposalError: boxes or masks that do not fit the image, or a weight without
        confidences.
    """
    classify = classify or _default()
    label_set = LabelSet.parse(labels)
    count = len(detections)
    if weight is not None and detections.confidence is None and count:
        raise ProposalError("weight mixes in the detections' confidence, and they have none; leave it out")
    if not count:
        empty = np.zeros((0, classify.backbone.embed_dim), np.float32)
        return _with(detections, np.zeros(0, int), np.zeros(0, np.float32), np.zeros(0, str), empty)
    rgb = read_image(image)
    given: dict[str, Any] = {"boxes": detections.xyxy}
    if detections.mask is not None:
        given = {"regions": Proposals.from_masks(detections.mask, rgb.shape[:2])}
    result = classify(rgb, label_set, background=background, **given)
    ids, confidence = result.labels, result.confidence
    if weight is not None and detections.confidence is not None:
        own = objectness(np.clip(detections.confidence, 0, 1))
        best = fused_probs(own, result.scores, result.nothing, weight=weight).max(dim=1)
        ids, confidence = best.indices.numpy(), best.values.numpy()
    names = np.array([*label_set.names, UNLABELLED])
    ids = np.where(ids >= 0, ids, len(label_set)).astype(int)
    vectors = _joined(result.embeddings, classify.operators, count, classify.backbone.embed_dim)
    labelled = _with(detections, ids, confidence.astype(np.float32), names[ids], vectors)
    if not drop_nothing:
        return labelled
    kept: Any = labelled[ids < len(label_set)]
    return cast(sv.Detections, kept)


@cache
def _default() -> RegionClassifier:
    return RegionClassifier("auto", proposals=None)


def _joined(vectors: dict[str, torch.Tensor], weights: Any, count: int, width: int) -> np.ndarray:
    """One unit row a region of those of several operators, weighted as their judgements are."""
    rows = torch.zeros(count, width)
    for operator, own in vectors.items():
        rows += weights[operator] * own.float().cpu()
    return F.normalize(rows, dim=1).numpy()


def _with(
    detections: sv.Detections, ids: np.ndarray, confidence: np.ndarray, names: np.ndarray, vectors: np.ndarray
) -> sv.Detections:
    before = {} if detections.confidence is None else {BEFORE: np.array(detections.confidence)}
    data = {**detections.data, **before, CLASS_NAME: names, EMBEDDING: vectors}
    return replace(detections, class_id=ids, confidence=confidence, data=data)
