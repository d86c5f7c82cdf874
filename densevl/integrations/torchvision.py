"""A torchvision detector with words for classes: CLIP names its boxes, and both confidences are fused.

Conventions are torchvision's: background is class 0, labels start at 1, scores above 0.05, NMS at 0.5 in each class,
100 detections. Shape letters: N boxes, K the detector's own classes with background, C classes asked for.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.detection.roi_heads import maskrcnn_inference
from torchvision.ops import batched_nms, clip_boxes_to_image, nms, remove_small_boxes

from densevl.errors import DensevlError, ImageError, ModelError, OptionError, ProposalError
from densevl.images import read_image
from densevl.integrations.foreign import READERS, THRESHOLD, Found, packages
from densevl.integrations.labelling import regions_of
from densevl.integrations.scores import WEIGHT, as_tensor, fused_probs, objectness
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Labels
from densevl.proposals.checks import refuse_normalised
from densevl.vocabulary import LabelSet

SMALLEST = 1e-2  # pixels: boxes with a shorter side are dropped, as torchvision does
Detection = dict[str, torch.Tensor]
OTHERS = {*READERS, "ultralytics", "transformers", "supervision", "rfdetr", "groundingdino"}


def rescore(
    boxes: Any,
    det_scores: Any,
    probs: Any,
    nothing: Any = None,
    *,
    weight: float | Sequence[float] = WEIGHT,
    image_size: tuple[int, int] | None = None,
    score_thresh: float = 0.05,
    nms_thresh: float = 0.5,
    detections_per_img: int = 100,
    parts: float | None = None,
) -> Detection:
    """Turn boxes with a detector's scores and CLIP's probabilities into detections.

    A box may be found under several labels, as in torchvision.

    Args:
        boxes: (N, 4) x0, y0, x1, y1 in pixels, array or tensor.
        det_scores: (N,) objectness from the detector, or (N, K) its softmax with background first.
        probs, nothing: `probs` (N, C) and `nothing` (N,) of a `RegionResult` of these boxes.
        weight: CLIP's share beside the detector's, or one for each class; see `fused_probs`.
        image_size: (H, W), to clip boxes to; None leaves them. score_thresh, nms_thresh, detections_per_img: as in
            torchvision.
        parts: also drop boxes of which more than this share lies within a larger one of the same label (BIRDet).

    Returns:
        boxes float32 (D, 4), labels int64 (D,) from 1, scores float32 (D,), best first, and index int64 (D,): the
        index among the N boxes.

    Raises:
        ProposalError: If shapes do not fit each other, or scores are not probabilities.
    """
    corners = as_tensor(boxes, what="boxes")
    corners = corners.reshape(0, 4) if corners.numel() == 0 else corners
    sure = objectness(det_scores, background=0).to(corners.device)
    if corners.shape != (len(sure), 4):
        raise ProposalError(f"boxes of shape {tuple(corners.shape)} for {len(sure)} scores: must be ({len(sure)}, 4)")
    if image_size is not None:
        refuse_normalised(corners.cpu().double().numpy(), image_size)
        corners = clip_boxes_to_image(corners, image_size)
    scores_NC = fused_probs(sure, probs, nothing, weight=weight)[:, :-1]
    index, label = torch.nonzero(scores_NC > score_thresh, as_tuple=True)
    usable = remove_small_boxes(corners[index], SMALLEST)
    index, label = index[usable], label[usable]
    scores = scores_NC[index, label]
    kept = batched_nms(corners[index], scores, label, nms_thresh)
    kept = kept[wholes(corners[index[kept]], label[kept], parts)][:detections_per_img]
    return {"boxes": corners[index[kept]], "labels": label[kept] + 1, "scores": scores[kept], "index": index[kept]}


def wholes(boxes: torch.Tensor, labels: torch.Tensor, parts: float | None) -> torch.Tensor:
    """Return which boxes (N, 4) are not part of a larger one of their label (N,): bool (N,); for `parts` see `rescore`.

    Raises:
        OptionError: If the share is outside 0..1.
    """
    if parts is None:
        return torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    if not 0 < parts <= 1:
        raise OptionError(f"parts is {parts}; it must be the share of a box within a larger one, above 0, up to 1")
    low, high = (
        torch.maximum(boxes[:, None, :2], boxes[None, :, :2]),
        torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:]),
    )
    shared_NN = (high - low).clamp(min=0).prod(dim=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    within = (shared_NN > parts * areas[:, None]) & (areas[None] > areas[:, None]) & (labels[:, None] == labels[None])
    return ~within.any(dim=1)


@torch.no_grad()
def candidates(
    detector: nn.Module, images: Sequence[torch.Tensor], *, top: int = 100, nms_thresh: float = 0.7
) -> list[Detection]:
    """Return boxes that may hold an object of any class, before the detector's own classes decide.

    For an R-CNN, each proposal is refined for its best class, and its score is 1 - p(background). For a detector
    without RoI heads (RetinaNet, FCOS, SSD), its detections are used.

    Args:
        detector: of torchvision, in eval mode. images: float (3, H, W), 0..1, as torchvision expects.
        top: keep at most this many per image, those with the best scores. nms_thresh: of the NMS among them, across
            classes.

    Returns:
        For each image boxes float32 (N, 4) in its pixels, scores float32 (N,), and, for a Mask R-CNN, masks float32
        (N, 1, H, W), 0..1.

    Raises:
        ModelError: If this is not a torchvision detector, or it is in training mode or half precision.
    """
    check_detector(detector)
    if name := next((type(one).__name__ for one in detector.modules() if one.training), None):
        raise ModelError(f"{name} in the detector is in training mode; call detector.eval() first")
    images = [image.to(_precision(detector, image)) for image in images]
    if not images:
        return []
    if not (hasattr(detector, "rpn") and hasattr(detector, "roi_heads")):
        found: list[Detection] = []
        for one in _as_detections(detector, detector(list(images)), len(images)):
            usable = remove_small_boxes(one["boxes"], SMALLEST)
            one = {key: value[usable] for key, value in one.items()}
            kept = nms(one["boxes"], one["scores"], nms_thresh)[:top]
            found.append({key: value[kept] for key, value in one.items()})
        return found
    rcnn: Any = detector
    heads = rcnn.roi_heads
    batch, _ = rcnn.transform(list(images))
    features = rcnn.backbone(batch.tensors)
    features = {"0": features} if isinstance(features, torch.Tensor) else features
    proposals, _ = rcnn.rpn(batch, features)
    pooled = heads.box_head(heads.box_roi_pool(features, proposals, batch.image_sizes))
    logits, deltas = heads.box_predictor(pooled)
    probs = logits.softmax(dim=1)
    own = probs[:, 1:].argmax(dim=1) + 1
    refined = heads.box_coder.decode(deltas, proposals)[torch.arange(len(own), device=own.device), own]
    found = []
    counts = [len(one) for one in proposals]
    parts = zip(refined.split(counts), (1 - probs[:, 0]).split(counts), own.split(counts), strict=True)
    for (boxes, scores, label), size in zip(parts, batch.image_sizes, strict=True):
        boxes = clip_boxes_to_image(boxes, size)
        usable = remove_small_boxes(boxes, SMALLEST)
        kept = usable[nms(boxes[usable], scores[usable], nms_thresh)[:top]]
        found.append({"boxes": boxes[kept], "scores": scores[kept], "labels": label[kept]})
    if heads.has_mask():
        pooled = heads.mask_roi_pool(features, [one["boxes"] for one in found], batch.image_sizes)
        masks = maskrcnn_inference(heads.mask_predictor(heads.mask_head(pooled)), [one["labels"] for one in found])
        for one, mask in zip(found, masks, strict=True):
            one["masks"] = mask
    sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
    found = rcnn.transform.postprocess(found, batch.image_sizes, sizes)
    return [{key: value for key, value in one.items() if key != "labels"} for one in found]


class OpenVocabularyDetector(nn.Module):
    """A torchvision detector whose classes are words: images in, dicts out, like the detector itself.

    Examples:
        >>> detector = torchvision.models.detection.maskrcnn_resnet50_fpn(weights="DEFAULT")
        >>> detect = OpenVocabularyDetector(detector, RegionClassifier("auto", proposals=None), ["teapot", "kettle"])
        >>> detect([image])[0]["labels"]  # index into detect.categories
    """

    def __init__(
        self,
        detector: nn.Module,
        classify: RegionClassifier,
        labels: Labels,
        *,
        weight: float | Sequence[float] = WEIGHT,
        background: BackgroundSpec = "auto",
        top: int = 100,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        detections_per_img: int = 100,
        parts: float | None = None,
    ) -> None:
        """Wrap a detector and put it into eval mode.

        Args:
            detector: Faster or Mask R-CNN, or another module that takes a list of images and returns a dict of boxes
                and scores for each, as torchvision's do. For other detectors use `label_detections`.
            classify: names its boxes, or its masks if it has some; its proposer is not used. labels: the classes.
            weight, score_thresh, nms_thresh, detections_per_img, parts: see `rescore`.
            background: see `RegionClassifier`.
            top: boxes per image to name; see `candidates`.

        Raises:
            LabelError: If the labels are unusable.
            ModelError: If this is not a torchvision detector, or its weights are damaged.
        """
        super().__init__()
        check_detector(detector)
        check_weights(detector)
        self.detector, self.classify = detector, classify
        self.background, self.top, self.weight = background, top, weight
        self.settings: dict[str, Any] = {
            "score_thresh": score_thresh,
            "nms_thresh": nms_thresh,
            "detections_per_img": detections_per_img,
            "parts": parts,
        }
        wholes(torch.zeros(0, 4), torch.zeros(0), parts)  # refuse an impossible share now
        self.set_labels(labels)
        self.eval()

    def set_labels(self, labels: Labels) -> None:
        """Replace the classes; nothing is trained or loaded again. Notes on the words are warnings.

        Raises:
            LabelError: If the labels are unusable.
        """
        self.labels = LabelSet.parse(labels)
        for text in self.classify.warnings(self.labels, self.background):
            warnings.warn(text, stacklevel=2)

    @property
    def categories(self) -> tuple[str, ...]:
        """Names by label, "__background__" first, as in the metadata of torchvision's weights."""
        return ("__background__", *self.labels.names)

    @torch.no_grad()
    def forward(self, images: Sequence[torch.Tensor]) -> list[Detection]:
        """Detect objects.

        Args:
            images: a list of tensors (3, H, W), float 0..1, RGB, of any sizes, or of other inputs of `read_image`.

        Returns:
            For each image boxes float32 (D, 4), labels int64 (D,) from 1, scores float32 (D,), and masks float32
            (D, 1, H, W) if the detector makes masks.

        Raises:
            DensevlError: If this module is in training mode.
            ImageError: If an input is not an image, such as a float tensor of 0..255.
        """
        if self.training:
            raise DensevlError("the detector is in training mode; call eval() first")
        if not isinstance(images, (list, tuple)) and not (isinstance(images, torch.Tensor) and images.ndim == 4):
            raise ImageError("give a list of images, [image] for one")
        images = [self._tensor(image) for image in images]
        found = []
        for image, one in zip(images, candidates(self.detector, images, top=self.top), strict=True):
            size = (int(image.shape[-2]), int(image.shape[-1]))
            if len(one["boxes"]):
                regions, seen = regions_of(Found(one["boxes"], _masks(one), None), size)
                one = {key: value[torch.from_numpy(seen).to(value.device)] for key, value in one.items()}
                result = self.classify(image, self.labels, regions=regions, background=self.background)
                probs, nothing = result.scores, result.nothing
            else:
                probs, nothing = np.zeros((0, len(self.labels)), np.float32), None
            scored = rescore(
                one["boxes"], one["scores"], probs, nothing, weight=self.weight, image_size=size, **self.settings
            )
            index = scored.pop("index")
            if "masks" in one:
                scored["masks"] = one["masks"][index]
            found.append(scored)
        return found

    def _tensor(self, image: Any) -> torch.Tensor:
        """Return an image as the detector takes it; float tensors are passed through."""
        rgb = read_image(image)
        if isinstance(image, torch.Tensor) and image.is_floating_point():
            return image
        device = next((one.device for one in self.detector.parameters()), None)
        return torch.from_numpy(rgb).permute(2, 0, 1).to(device) / 255


def check_detector(detector: Any) -> None:
    """Refuse objects that are not modules of torchvision's kind, before touching them.

    Raises:
        ModelError: If it is something else.
    """
    own = packages(detector)
    name, strange = type(detector).__name__, own & OTHERS
    way = "run it, and give what it returns to label_detections(image, found, labels)"
    if isinstance(detector, type):
        raise ModelError(f"{detector.__name__} is a class, not a detector; make one: {detector.__name__}(...)")
    if strange or not isinstance(detector, nn.Module):
        raise ModelError(f"{name}{f' of {min(strange)}' if strange else ''} is not a torchvision detector; {way}")
    for module in detector.modules():
        if "mode" not in inspect.signature(type(module).train).parameters:  # eval() calls train(False)
            raise ModelError(f"{name} holds a {type(module).__name__}, whose train() starts training; {way}")


def check_weights(detector: nn.Module) -> None:
    """Refuse weights that are not numbers: with them a detector silently finds nothing.

    Raises:
        ModelError: If a weight is NaN or infinite.
    """
    for name, weight in detector.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise ModelError(f"weights {name} of {type(detector).__name__} hold NaN or infinity; load intact weights")


def _precision(detector: nn.Module, image: torch.Tensor) -> torch.dtype:
    """Return the precision to compute images in.

    Raises:
        ModelError: If it is half precision: torchvision has no NMS for it, and boxes beyond 2048 pixels are off by one.
    """
    own = next((weight.dtype for weight in detector.parameters() if weight.is_floating_point()), torch.float32)
    if own not in (torch.float32, torch.float64):
        raise ModelError(
            f"the detector's weights are {str(own).rpartition('.')[2]}: torchvision suppresses boxes in float32; call "
            "detector.float(), and for speed torch.autocast"
        )
    return own


def _as_detections(detector: nn.Module, found: Any, count: int) -> list[Detection]:
    fits = isinstance(found, (list, tuple)) and len(found) == count
    if not fits or not all(isinstance(one, dict) and {"boxes", "scores"} <= one.keys() for one in found):
        raise ModelError(
            f"{type(detector).__name__} returned a {type(found).__name__}, not a dict of boxes and scores for each "
            "image; give what it returns to label_detections(image, found, labels)"
        )
    columns: tuple[str, ...] = ("boxes", "scores", "masks")
    return [{key: one[key] for key in columns if key in one} for one in found]


def _masks(one: Detection) -> torch.Tensor | None:
    return (one["masks"] > THRESHOLD).cpu() if "masks" in one else None
