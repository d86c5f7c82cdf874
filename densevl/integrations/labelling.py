"""Names for the boxes or masks that a detector found, from any package."""

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
    """Name detections: return a copy of the same kind, row for row, with the labels as its classes.

    These are accepted, alone or in a list of one:

    - `supervision.Detections`. In the copy class_id, int (N,), counts the labels from 0, confidence float32 (N,) is the
      probability of the label, data["class_name"] holds strings (N,), data["embedding"] float32 unit rows (N, E) that
      can be compared with words and with each other, and data["proposal_confidence"] the original confidence.
    - ultralytics' `Results` with boxes and perhaps masks. The copy has the labels as `names`, which `plot()`,
      `summary()` and `save_txt()` then use.
    - A dict of boxes (N, 4) in pixels, scores (N,) and perhaps masks, as from torchvision's detectors and transformers'
      `post_process_object_detection`. In the copy labels, int64 (N,), counts from 0, scores is the probability,
      text_labels holds strings, embeddings float32 (N, E), and proposal_scores the original scores. Soft masks are
      cut at 0.5.
    - Outputs of a model of transformers' DETR family for one image; queries with a score of at least 0.5 come back as
      such a dict.
    - A dict of segmentation and segments_info, from `post_process_instance_segmentation` or `_panoptic_`; the copy has
      label_id, label and score in each info.

    Detections that match none of the labels get the number one past the last, and the name "nothing"; their confidence
    is that of the winner. A box without area or outside the image, which detectors and trackers do return, is also
    "nothing", with confidence 0, a row of zeros and a warning. All other data is kept. None of these packages is
    imported. Notes on the words and the image are Python warnings, because these types have no place for them.

    Args:
        image: the image that was searched, as for `read_image`. Arrays are RGB: pass frame[:, :, ::-1] of OpenCV's BGR.
            None takes the picture stored in ultralytics' `Results`.
        detections: masks are named if there are any, otherwise boxes; a mask without pixels falls back to its box. A
            `CompactMask` is read one mask at a time and stays compact. Parts outside the image are cut off.
        labels: the classes. classify: names regions; None is `RegionClassifier("auto")`, loaded once.
        background: words that compete with the labels; see `RegionClassifier`.
        weight: None gives CLIP's probabilities; a number 0..1 mixes in the detections' own confidence, with a share of
            (1 - weight): see `fused_probs`.
        drop_nothing: leave out the rows that are "nothing".

    Raises:
        LabelError: If the labels are unusable.
        ImageError: If the image is None and the detections hold none, or it is unreadable.
        ProposalError: If the object is of another kind, boxes or masks do not fit the image, scores are not numbers,
            or there is a weight but no confidences.
    """
    label_set = LabelSet.parse(labels)
    rgb = None if image is None else read_image(image)
    found = read(detections, None if rgb is None else (rgb.shape[0], rgb.shape[1]))
    if rgb is None:
        if found.bgr is None:
            raise ImageError(
                "image is None, which works only with ultralytics' Results that hold their picture; give the image"
            )
        rgb = read_image(found.bgr[..., ::-1] if found.bgr.ndim == 3 else found.bgr)
    size = (rgb.shape[0], rgb.shape[1])
    if found.size not in (None, size):
        raise ProposalError(f"detections are of an image {found.size}, this one is {size}: both are (height, width)")
    if weight is not None and found.scores is None and len(found):
        raise ProposalError("weight mixes in the detections' confidence, but they have none; leave it out")
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
    """Return the masks of detections on an image (H, W), or their boxes; a mask without a pixel becomes its box.

    Also return which detections have a region, bool (N,): not those whose box has no area within the image either.

    Raises:
        ProposalError: If they do not fit the image, such as boxes with swapped corners or all outside, or the numbers
            of masks and boxes differ.
    """
    if found.masks is None:
        corners, seen = detected_boxes(found.boxes, size)
        return Proposals.from_boxes(corners[seen], size), seen
    masks = Proposals.from_masks(found.masks, size)
    if len(masks) != len(found):
        raise ProposalError(f"{len(masks)} masks for {len(found)} boxes; there must be one for each")
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
    """Average the embeddings of several operators, weighted as their scores are, to one unit row per region."""
    rows = torch.zeros(count, width)
    for operator, own in vectors.items():
        rows += weights[operator] * own.float().cpu()
    return F.normalize(rows, dim=1).numpy()
