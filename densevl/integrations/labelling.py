"""Names for the boxes or masks that a detector found, whichever package it is of."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from densevl.errors import ImageError, ProposalError
from densevl.images import read_image
from densevl.integrations.foreign import Found, Named, read
from densevl.integrations.scores import fused_probs, objectness
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Labels
from densevl.proposals import Proposals
from densevl.proposals.checks import detected_boxes
from densevl.results import UNLABELLED
from densevl.vocabulary import LabelSet


def label_detections(
    image: Any,
    detections: Any,
    labels: Labels,
    classify: RegionClassifier | None = None,
    *,
    background: BackgroundSpec = "auto",
    weight: float | None = None,
    drop_nothing: bool = False,
) -> Any:
    """Name detections: a copy of the same kind, row for row, with classes in place of what it had.

    Taken as they are, alone or in a list of one:

    - `supervision.Detections`. In the copy class_id, int (N,), counts the labels from 0, confidence float32 (N,) is the
      probability of the label, data["class_name"] holds strings (N,), data["embedding"] float32 unit rows (N, E) that
      can be compared with words and with each other, and data["proposal_confidence"] the confidence as it was.
    - ultralytics' `Results` with boxes, and masks if it has some. The copy has the labels as `names`, so that `plot()`,
      `summary()` and `save_txt()` speak of them.
    - A dict of boxes (N, 4) in pixels, scores (N,) and perhaps masks, as torchvision's detectors and transformers'
      `post_process_object_detection` give. In the copy labels, int64 (N,), counts from 0, scores is the probability,
      text_labels holds strings, embeddings float32 (N, E), and proposal_scores the scores as they were. Soft masks are
      cut at 0.5.
    - Outputs of a model of transformers' DETR family for one image; queries as sure as 0.5 come back as such a dict.
    - A dict of segmentation and segments_info, of `post_process_instance_segmentation` or `_panoptic_`; the copy has
      label_id, label and score in each info.

    What is none of the labels has the number one past the last, and the name "nothing"; its confidence is that of what
    won instead. Among others, a box without area or outside the image, as detectors and trackers make them, is such
    too, with confidence 0, a row of zeros and a warning. Everything else is taken over. None of these packages is
    imported. What the user should know about the words and the image is a Python warning, as these types have no place
    for it.

    Args:
        image: what was looked at, as `read_image` takes it. Arrays are RGB: pass frame[:, :, ::-1] of OpenCV's BGR.
            None takes the picture that ultralytics' `Results` hold.
        detections: with masks, those are named; where one holds no pixel, and where there are none, the box. A
            `CompactMask` is read one mask at a time and stays compact. Parts outside the image are cut off.
        labels: the classes. classify: names regions; None is `RegionClassifier("auto")`, loaded once.
        background: what competes with the labels; see `RegionClassifier`.
        weight: None gives CLIP's probabilities; a number 0..1 mixes in the detections' own confidence, (1 - weight)
            being its say: see `fused_probs`.
        drop_nothing: leave out the rows that are "nothing".

    Raises:
        LabelError: unusable labels.
        ProposalError: other objects, boxes or masks that do not fit the image, scores that are no numbers, or a weight
            without confidences.
    """
    label_set = LabelSet.parse(labels)
    rgb = None if image is None else read_image(image)
    found = read(detections, None if rgb is None else (rgb.shape[0], rgb.shape[1]))
    if rgb is None:
        if found.bgr is None:
            raise ImageError("image is None, and only ultralytics' Results hold their picture; give the image")
        rgb = read_image(found.bgr[..., ::-1] if found.bgr.ndim == 3 else found.bgr)
    size = (rgb.shape[0], rgb.shape[1])
    if found.size not in (None, size):
        raise ProposalError(f"detections are of an image {found.size}, this one is {size}: both are (height, width)")
    if weight is not None and found.scores is None and len(found):
        raise ProposalError("weight mixes in the detections' confidence, and they have none; leave it out")
    classify = classify or _default()
    names = (*label_set.names, UNLABELLED)
    width = classify.backbone.embed_dim
    if not len(found):
        none = Named(
            np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, width), np.float32), names, np.ones(0, bool)
        )
        return found.write(none)
    regions, seen = regions_of(found, size)
    if not seen.all():
        warnings.warn(
            f"{(~seen).sum()} of {len(seen)} boxes have no area within the image, so they are '{UNLABELLED}'",
            stacklevel=2,
        )
    ids, confidence = np.full(len(seen), len(label_set)), np.zeros(len(seen), np.float32)
    vectors = np.zeros((len(seen), width), np.float32)
    if seen.any():
        result = classify(rgb, label_set, background=background, regions=regions)
        for text in result.warnings:
            warnings.warn(text, stacklevel=2)
        named, sure = np.where(result.labels >= 0, result.labels, len(label_set)), result.confidence
        if weight is not None and found.scores is not None:
            own = objectness(found.scores)[torch.from_numpy(seen)]
            best = fused_probs(own, result.scores, result.nothing, weight=weight).max(dim=1)
            named, sure = best.indices.numpy(), best.values.numpy()
        ids[seen], confidence[seen] = named, sure
        vectors[seen] = _joined(result.embeddings, classify.operators, len(regions), width)
    kept = ids < len(label_set) if drop_nothing else np.ones(len(ids), bool)
    return found.write(Named(ids, confidence, vectors, names, kept))


def regions_of(found: Found, size: tuple[int, int]) -> tuple[Proposals, np.ndarray]:
    """The masks of detections on an image (H, W), or their boxes, of a mask without a pixel the box; and whose they
    are, bool (N,): not of those whose box has no area within the image either.

    Raises:
        ProposalError: what does not fit the image, such as boxes whose far corner is before the near one, or which are
            all outside; or another number of masks than of boxes.
    """
    if found.masks is None:
        corners, seen = detected_boxes(found.boxes, size)
        return Proposals.from_boxes(corners[seen], size), seen
    masks = Proposals.from_masks(found.masks, size)
    if len(masks) != len(found):
        raise ProposalError(f"{len(masks)} masks for {len(found)} boxes: one each")
    seen = masks.areas > 0
    empty = np.flatnonzero(~seen)
    if not len(empty):
        return masks, seen
    corners, boxed = detected_boxes(found.boxes[empty], size)
    packed = masks.packed.copy()
    packed[empty[boxed]] = Proposals.from_boxes(corners[boxed], size).packed
    seen[empty[boxed]] = True
    return Proposals.from_packed(packed[seen], size), seen


@cache
def _default() -> RegionClassifier:
    return RegionClassifier("auto", proposals=None)


def _joined(vectors: dict[str, torch.Tensor], weights: Any, count: int, width: int) -> np.ndarray:
    """One unit row a region of those of several operators, weighted as their judgements are."""
    rows = torch.zeros(count, width)
    for operator, own in vectors.items():
        rows += weights[operator] * own.float().cpu()
    return F.normalize(rows, dim=1).numpy()
