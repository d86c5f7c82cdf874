"""Read results of other packages' detectors without importing those packages, by the names of types and keys.

Nothing is called on an object before its type is known. Attributes of unknown objects may run code: `eval()` of
ultralytics' YOLO starts training.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from densevl.errors import ProposalError

THRESHOLD = 0.5  # for torchvision's soft masks and for queries in raw outputs; the default of transformers
SOFTMAX = ("Detr", "Yolos", "TableTransformer")  # output types whose last class is "no object"; others are sigmoids
SQUARE = "Owlv2"  # output types whose boxes are of the image padded to a square, right and below
KNOWN = (
    "supervision.Detections, ultralytics' Results, or a dict of boxes, scores and labels as torchvision and "
    "transformers give"
)
READERS = {
    "mmdet": "supervision.Detections.from_mmdetection(found)",
    "mmengine": "supervision.Detections.from_mmdetection(found)",
    "detectron2": "supervision.Detections.from_detectron2(found)",
    "super_gradients": "supervision.Detections.from_yolo_nas(found)",
    "inference": "supervision.Detections.from_inference(found)",
    "models": "supervision.Detections.from_yolov5(found)",  # torch.hub's YOLOv5
}


@dataclass(frozen=True)
class Named:
    """Names of detections.

    Attributes:
        ids: int64 (N,), index into `names`. confidence: float32 (N,). vectors: float32 (N, E), unit rows.
        names: of the labels, and "nothing" last. kept: bool (N,), the rows to return.
    """

    ids: np.ndarray
    confidence: np.ndarray
    vectors: np.ndarray
    names: tuple[str, ...]
    kept: np.ndarray


@dataclass(frozen=True)
class Found:
    """Detections of one image.

    Attributes:
        boxes: (N, 4) x0 y0 x1 y1 in pixels. masks: (N, H, W) or None.
        scores: float64 (N,) or None. write: makes the same kind of object with other names.
        size: (H, W) of their image. bgr: the image itself. Both are None if the detections do not hold them.
    """

    boxes: Any
    masks: Any
    scores: np.ndarray | None
    write: Callable[[Named], Any] = lambda named: None
    size: tuple[int, int] | None = None
    bgr: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)


def packages(thing: Any) -> set[str]:
    """Return the packages that an object's types come from, without touching the object."""
    # `type`, because `isinstance` and `hasattr` ask the object
    return {base.__module__.partition(".")[0] for base in type(thing).__mro__} - {"builtins", "collections", "typing"}


def read(found: Any, size: tuple[int, int] | None) -> Found:
    """Read detections of one image (H, W), as their package returns them, or in a list of one.

    Raises:
        ProposalError: If they are of another kind; the message names what to give instead.
    """
    if isinstance(found, (list, tuple)) and len(found) == 1 and not isinstance(found[0], (list, tuple)):
        one = read(found[0], size)
        return replace(one, write=lambda named: [one.write(named)])
    own, name = packages(found), type(found).__name__
    if "supervision" in own and name == "Detections":
        return _supervision(found)
    if "ultralytics" in own and name == "Results":
        return _ultralytics(found)
    if isinstance(found, dict) and {"boxes", "scores"} <= found.keys():
        return _records(found)
    # If there are masks, boxes alone would lose them.
    queries = isinstance(found, dict) and {"logits", "pred_boxes"} <= found.keys() and "pred_masks" not in found
    if queries and "transformers" in own:
        return _queries(found, size)
    if isinstance(found, dict) and {"segmentation", "segments_info"} <= found.keys():
        return _segments(found)
    raise ProposalError(f"{_called(found)}; {_way(found, own)}")


def _called(found: Any) -> str:
    if isinstance(found, (list, tuple)):
        inner = f" {len(found)} {type(found[0]).__name__}" if len(found) else "out anything"
        return f"detections are a {type(found).__name__} with{inner}"
    if isinstance(found, dict):
        return f"detections are a dict of {', '.join(map(str, list(found)[:6])) or 'nothing'}"
    package = next(iter(sorted(packages(found) - {"torch", "numpy", "dataclasses"})), "")
    return f"detections are a {type(found).__name__}" + f" of {package}" * bool(package)


def _way(found: Any, own: set[str]) -> str:
    if isinstance(found, (nn.Module, str, bytes, os.PathLike)) or "ultralytics" in own:
        return f"give what the detector returns for the image: {KNOWN}"
    if isinstance(found, dict) and "instances" in found:
        own = {"detectron2"}
    for package, reader in READERS.items():
        if package in own:
            return f"give {reader}"
    if isinstance(found, dict) and ("masks_queries_logits" in found or "pred_masks" in found):
        return "give processor.post_process_instance_segmentation(outputs, target_sizes=[(H, W)])[0]"
    if isinstance(found, dict) and "pred_boxes" in found:
        return "give processor.post_process_object_detection(outputs, target_sizes=[(H, W)])"
    if isinstance(found, (np.ndarray, torch.Tensor)):
        named, shape = "RegionClassifier(model)(image, labels, ", tuple(found.shape)
        if len(shape) == 2 and 4 <= shape[1] <= 7:
            return f"for plain boxes, {named}boxes=found[:, :4]) names each"
        if len(shape) == 2:
            return f"for a map, {named}regions=found) names each number above 0; regions=found + 1 if 0 is a class"
        return f"for masks (M, H, W), {named}regions=masks) names each"
    if isinstance(found, Iterator):
        return "give its results one by one, each with its image"
    if isinstance(found, (list, tuple)) and len(found) and isinstance(found[0], dict) and "segmentation" in found[0]:
        return "for masks, RegionClassifier(model)(image, labels, regions=masks) names each"
    if isinstance(found, (list, tuple)) and len(found) > 1:
        return "give those of one image, with that image"
    return f"give {KNOWN}"


def _supervision(found: Any) -> Found:
    sure = found.data.get("proposal_confidence", found.confidence)  # the detector's own, whether named before or not

    def write(named: Named) -> Any:
        before = {} if sure is None else {"proposal_confidence": np.array(sure)}
        own = {"class_name": np.array(named.names)[named.ids], "embedding": named.vectors}
        data = {**found.data, **before, **own}
        made = replace(found, class_id=named.ids.astype(int), confidence=named.confidence, data=data)
        return made if named.kept.all() else made[named.kept]

    return Found(found.xyxy, found.mask, _scores(sure), write)


def _ultralytics(found: Any) -> Found:
    """Rows of `boxes.data` are x0 y0 x1 y1, perhaps a track, confidence, class; masks have the network's size."""
    if found.boxes is None:
        contents = "rotated boxes, which cannot be named; give upright ones" if found.obb is not None else "no boxes"
        raise ProposalError(f"ultralytics' Results hold {contents}: give those of a detection or segmentation model")
    size = (int(found.orig_shape[0]), int(found.orig_shape[1]))
    rows = torch.as_tensor(found.boxes.data).detach().cpu().float()
    masks = None if found.masks is None else _unboxed(torch.as_tensor(found.masks.data).detach().cpu().float(), size)

    def write(named: Named) -> Any:
        made, data = copy.copy(found), rows.clone()
        data[:, -2:] = torch.from_numpy(np.stack([named.confidence, named.ids], axis=1))
        as_given = data.numpy() if isinstance(found.boxes.data, np.ndarray) else data.to(found.boxes.data.device)
        made.boxes = type(found.boxes)(as_given, found.orig_shape)
        made.names = dict(enumerate(named.names))
        return made if named.kept.all() else made[np.flatnonzero(named.kept)]

    return Found(rows[:, :4], masks, _scores(rows[:, -2]), write, size, np.asarray(found.orig_img))


def _unboxed(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize masks (N, h, w) of an image that was scaled into (h, w) and padded evenly: bool (N, H, W)."""
    (height, width), (h, w) = size, masks.shape[1:]
    if (h, w) == size:
        return masks > THRESHOLD
    scale = min(h / height, w / width)
    top, left = (h - height * scale) / 2, (w - width * scale) / 2
    inner = masks[:, max(0, round(top - 0.1)) : round(h - top + 0.1), max(0, round(left - 0.1)) : round(w - left + 0.1)]
    large = (F.interpolate(one[None, None], size, mode="bilinear")[0, 0] > THRESHOLD for one in inner)
    return torch.stack(list(large)) if len(masks) else torch.zeros(0, *size, dtype=torch.bool)


def _records(found: dict[str, Any]) -> Found:
    """Read detections of torchvision or post-processed transformers; torchvision's masks are soft (N, 1, H, W)."""
    boxes, masks, sure = found["boxes"], found.get("masks"), found.get("proposal_scores", found["scores"])
    if masks is not None and torch.is_tensor(masks) and masks.is_floating_point():
        masks = masks > THRESHOLD

    def write(named: Named) -> dict[str, Any]:
        own = {
            "labels": torch.from_numpy(named.ids),
            "scores": torch.from_numpy(named.confidence),
            "text_labels": [named.names[index] for index in named.ids],
            "embeddings": torch.from_numpy(named.vectors),
            "proposal_scores": sure,
        }
        return {key: _rows(value, named.kept) for key, value in {**found, **own}.items()}

    return Found(boxes, masks, _scores(sure), write)


def _queries(found: dict[str, Any], size: tuple[int, int] | None) -> Found:
    """Read raw outputs of transformers' DETR family; queries with a score of `THRESHOLD` or more are detections."""
    logits, boxes = found["logits"].detach().cpu().float(), found["pred_boxes"].detach().cpu().float()
    if len(logits) != 1 or size is None:
        raise ProposalError(f"outputs of {len(logits)} images: give those of one image, with that image")
    softmax = type(found).__name__.startswith(SOFTMAX)
    sure = (logits[0].softmax(dim=-1)[:, :-1] if softmax else logits[0].sigmoid()).amax(dim=-1)
    if not bool(torch.isfinite(sure).all() and torch.isfinite(boxes).all()):
        raise ProposalError("detector outputs hold NaN or infinity: the model overflowed, or its weights are damaged")
    which = sure >= THRESHOLD
    sides = [max(size)] * 4 if type(found).__name__.startswith(SQUARE) else [size[1], size[0]] * 2
    x, y, w, h = (boxes[0][which] * torch.tensor(sides)).unbind(dim=1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1)
    return _records({"boxes": corners, "scores": sure[which]})


def _segments(found: dict[str, Any]) -> Found:
    """Read transformers' post-processed segments: a map of ids or one mask each, with an id and a score for each."""
    given, infos = found["segmentation"], list(found["segments_info"])
    if isinstance(given, (list, tuple)):  # return_coco_annotation=True
        raise ProposalError(
            "segmentation is a list of run lengths, which do not contain their size; post-process without "
            "return_coco_annotation"
        )
    numbers = torch.as_tensor(given).detach().cpu()
    if numbers.ndim == 3:  # return_binary_maps=True
        if len(numbers) != len(infos):
            raise ProposalError(f"{len(numbers)} masks for {len(infos)} segments_info; there must be one for each")
        masks = numbers > THRESHOLD
    elif infos:
        masks = torch.stack([numbers == info["id"] for info in infos])
    else:
        masks = torch.zeros(0, *numbers.shape, dtype=torch.bool)

    def write(named: Named) -> dict[str, Any]:
        rows = zip(infos, named.ids.tolist(), named.confidence.tolist(), strict=True)
        updated = [
            {**info, "label_id": index, "label": named.names[index], "score": sure} for info, index, sure in rows
        ]
        return {**found, "segments_info": _rows(updated, named.kept)}

    return Found(np.zeros((len(infos), 4)), masks, _scores([info.get("score", 1.0) for info in infos]), write)


def _scores(scores: Any) -> np.ndarray | None:
    """Return confidences as float64 (N,).

    Raises:
        ProposalError: If one is NaN or infinite.
    """
    if scores is None:
        return None
    array = torch.as_tensor(scores).detach().cpu().double().numpy()
    if not np.isfinite(array).all():
        raise ProposalError(
            f"confidence of detection {int((~np.isfinite(array)).argmax())} is not a number: the detector overflowed, "
            "or its weights are damaged"
        )
    return array


def _rows(value: Any, kept: np.ndarray) -> Any:
    """Return the kept rows of a column; pass anything else through."""
    if isinstance(value, list) and len(value) == len(kept):
        return [one for one, keep in zip(value, kept, strict=True) if keep]
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == len(kept):
        return value[torch.from_numpy(kept).to(value.device)]
    return value[kept] if isinstance(value, np.ndarray) and value.ndim and len(value) == len(kept) else value
