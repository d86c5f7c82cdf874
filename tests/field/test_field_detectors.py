"""Detectors and their results as people hand them over; ultralytics where it is installed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "HF_HUB_OFFLINE": "1"}  # read on import

import numpy as np
import pytest
import torch
from case import Case, cases
from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from conftest import random_clip, wrap
from densevl.backbones import InferenceProtocol
from densevl.integrations import (
    OpenVocabularyDetector,
    candidates,
    label_detections,
    replace_predictor,
    rescore,
    roi_hook,
)
from densevl.pipelines.regions.classifier import RegionClassifier

SIZE = (48, 64)
PHOTO = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
BOXES = torch.tensor([[4.0, 3, 30, 40], [20, 10, 60, 44]])
MAP = torch.zeros(SIZE, dtype=torch.int32)
MAP[3:40, 4:30] = 1
FOUND = {"boxes": BOXES, "scores": torch.tensor([0.9, 0.4]), "labels": torch.tensor([1, 7])}
LABELS = ["cat", "dog"]


class Trainer(nn.Module):
    """As ultralytics' YOLO: `train` trains, and so does `eval`, which calls it."""

    def train(self, trainer: Any = None, **settings: Any) -> Any:  # type: ignore[override]
        raise AssertionError("training started")


class Odd(nn.Module):
    """A module that returns something of its own."""

    def forward(self, images: Any) -> Any:
        return torch.zeros(len(images), 6)


class Owlv2ObjectDetectionOutput(dict):
    """As transformers' own: its boxes are of the image padded to a square."""


Owlv2ObjectDetectionOutput.__module__ = "transformers.models.owlv2.modeling_owlv2"


class Strange:
    """Its attributes run code."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"touched: {name}")


Strange.__module__ = "detectron2.structures.instances"


class Tiny(nn.Module):
    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 8, stride=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


@cache
def classify() -> RegionClassifier:
    protocol = InferenceProtocol(short_side=48, crop=32, stride=16)
    return RegionClassifier(wrap(random_clip()), "cls_mask", proposals=None, templates="photo", protocol=protocol)


def torchvision_detector() -> nn.Module:
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    return FCOS(Tiny(), 3, anchor_generator=anchors, score_thresh=0.0, min_size=48, max_size=64).eval()


def labelled(found: Any, image: Any = PHOTO, **settings: Any) -> Any:
    return lambda folder: label_detections(image, found, LABELS, classify(), **settings)


def wrapped(detector: Any) -> Any:
    return lambda folder: OpenVocabularyDetector(detector, classify(), LABELS)


def detected(*images: Any) -> Any:
    return lambda folder: OpenVocabularyDetector(torchvision_detector(), classify(), LABELS)(*images)


def broken(folder: Path) -> Any:
    detector = torchvision_detector()
    nn.init.constant_(detector.backbone.conv.weight, float("nan"))
    return OpenVocabularyDetector(detector, classify(), LABELS)


def holder() -> nn.Module:
    module = nn.Module()
    module.add_module("inner", Trainer())
    return module


def segments(maps: Any) -> dict[str, Any]:
    """As post_process_instance_segmentation gives one, numbered from 0."""
    return {"segmentation": maps, "segments_info": [{"id": 0, "label_id": 3, "score": 0.9}]}


def as_the_map(got: Any) -> bool:
    """A mask of its own is named as a map of its number is."""
    same = labelled(segments(MAP - 1))(Path())
    return abs(got["segments_info"][0]["score"] - same["segments_info"][0]["score"]) < 1e-6


def spoiled(change: Callable[[nn.Module], Any], image: torch.Tensor | None = None) -> Any:
    """A detector that was changed after it was wrapped."""

    def run(folder: Path) -> Any:
        detect = OpenVocabularyDetector(torchvision_detector(), classify(), LABELS)
        change(detect.detector)
        return detect([torch.rand(3, *SIZE) if image is None else image])

    return run


def warned(image: Any, found: Any, **settings: Any) -> Any:
    """Named with their Python warnings."""

    def run(folder: Path) -> Any:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            made = label_detections(image, found, LABELS, classify(), **settings)
        return SimpleNamespace(found=made, warnings=[str(one.message) for one in said])

    return run


def supervised(**columns: Any) -> Any:
    return pytest.importorskip("supervision").Detections(xyxy=BOXES.numpy(), **columns)


def twice(folder: Path) -> Any:
    sure = np.array([0.9, 0.4], np.float32)
    once = label_detections(PHOTO, supervised(confidence=sure), LABELS, classify())
    return label_detections(PHOTO, once, ["car", "bus"], classify(), weight=0.5), once, sure


def is_named(found: Any) -> bool:
    own = {"boxes", "scores", "labels", "text_labels", "embeddings", "proposal_scores"}
    return own == found.keys() and len(found["text_labels"]) == 2 and FOUND["labels"].tolist() == [1, 7]


RAW = {"class_queries_logits": torch.zeros(1, 3, 4), "masks_queries_logits": torch.zeros(1, 3, 8, 8)}
LINE = torch.tensor([[64.0, 5, 64, 20]])  # clamped to the image
AWAY = torch.tensor([[90.0, 5, 99, 20]])
SOME = {"boxes": torch.cat([BOXES[:1], LINE, AWAY]), "scores": torch.tensor([0.9, 0.4, 0.3])}
TABLE = (
    Case("training inside", "detector.train() after wrapping", spoiled(lambda own: own.train()), "FCOS .*call .*eval"),
    Case("a part in training", "frozen but for its head", spoiled(lambda own: own.head.train()), "FCOSHead .*training"),
    Case("candidates in training", "the function alone",
         lambda f: candidates(torchvision_detector().train(), []), "training mode"),
    *(Case(f"images of {kind}", "a detector of float32", spoiled(lambda own: own, torch.rand(3, *SIZE).to(kind)),
           right=lambda found: found[0]["boxes"].dtype == torch.float32)
      for kind in (torch.float64, torch.float16, torch.bfloat16)),
    Case("a detector of float64", "exported or checked", spoiled(lambda own: own.double()),
         right=lambda found: len(found) == 1),
    *(Case(f"a detector of {kind}", "half precision", spoiled(lambda own, kind=kind: own.to(kind)), "suppresses boxes")
      for kind in (torch.float16, torch.bfloat16)),
    Case("autocast", "half precision around everything",
         lambda f: torch.autocast("cpu", torch.bfloat16)(detected([torch.rand(3, *SIZE)]))(f),
         right=lambda found: len(found) == 1),
    Case("a map of classes", "post_process_semantic_segmentation", labelled([MAP]), r"a map.*regions=found \+ 1 if 0"),
    Case("masks alone", "(N, H, W)", labelled(torch.zeros(3, *SIZE)), "for masks .*regions=masks"),
    Case("raw outputs of Mask2Former", "not post-processed", labelled(RAW), "post_process_instance_segmentation"),
    Case("raw outputs of DetrForSegmentation", "boxes beside masks that would be lost",
         labelled({"logits": MAP, "pred_boxes": BOXES, "pred_masks": MAP}),
         "post_process_instance_segmentation"),
    Case("boxes without area among others", "video", warned(PHOTO, SOME),
         warned="2 of 3 boxes have no area within", right=lambda got: got.found["labels"][1:].tolist() == [2, 2]
         and got.found["scores"][1:].tolist() == [0, 0] and len(got.found["embeddings"]) == 3),
    Case("the others are what they were", "the same",
         lambda f: (warned(PHOTO, SOME)(f).found, labelled({**FOUND, "boxes": BOXES[:1], "scores": torch.ones(1)})(f)),
         right=lambda got: torch.allclose(got[0]["embeddings"][:1], got[1]["embeddings"])),
    Case("with the detector's say", "the same, weight=", warned(PHOTO, SOME, weight=0.5), warned="2 of 3"),
    Case("left out with nothing", "the same, drop_nothing=", warned(PHOTO, SOME, drop_nothing=True),
         right=lambda got: len(got.found["labels"]) <= 1),
    Case("all without area", "clamped", warned(PHOTO, {"boxes": LINE, "scores": torch.ones(1)}), warned="1 of 1"),
    Case("all outside", "boxes of another image", labelled({"boxes": AWAY, "scores": torch.ones(1)}), "outside"),
    Case("x, y, width, height of detections", "COCO's bbox",
         labelled({**FOUND, "boxes": torch.tensor([[4.0, 3, 30, 40], [40, 30, 20, 10]])}), "box 1 .*xywh"),
    Case("a mask and a box without a pixel", "padding", warned(
        PHOTO, {**SOME, "masks": torch.zeros(3, 1, *SIZE)}), warned="2 of 3"),
    Case("an empty segment", "a map without one of its numbers", warned(PHOTO, {
        "segmentation": MAP, "segments_info": [{"id": 1, "score": 0.9}, {"id": 5, "score": 0.8}]}), warned="1 of 2"),
    Case("named twice keeps the detector's confidence", "supervision", twice, right=lambda got: np.array_equal(
        got[0].data["proposal_confidence"], got[2]) and not np.array_equal(got[1].confidence, got[2])),
    Case("a dict named twice", "torchvision", lambda f: labelled(labelled(FOUND)(f))(f),
         right=lambda got: torch.equal(got["proposal_scores"], FOUND["scores"])),
    Case("a trainer is not started", "OpenVocabularyDetector(YOLO(...))", wrapped(Trainer()), "starts training"),
    Case("a trainer inside is not started", "a module that holds one",
         wrapped(holder()), "holds a Trainer.*label_detections"),
    Case("a trainer is not asked for candidates", "the same, elsewhere",
         lambda f: candidates(Trainer(), []), "starts training"),
    Case("a trainer gets no predictor", "the same",
         lambda f: replace_predictor(Trainer(), classify(), LABELS), "starts training"),
    Case("a module of another kind", "outputs that are no dicts",
         lambda f: wrapped(Odd())(f)([PHOTO]), "returned a Tensor"),
    Case("a path", "a .pt file in place of a detector", wrapped("yolo.pt"), "str is not a torchvision detector"),
    Case("None", "a detector that is missing", wrapped(None), "NoneType is not a torchvision detector"),
    Case("a class", "FasterRCNN in place of FasterRCNN(...)", wrapped(FCOS), "FCOS is a class"),
    Case("weights of NaN", "a training that diverged", broken, "backbone.conv.weight of FCOS hold NaN"),
    Case("one image", "a tensor in place of a list", detected(torch.rand(3, 48, 64)), "give a list of images"),
    Case("images of 0-255", "floats of an uint8 image", detected([torch.rand(3, 48, 64) * 255]), "divide by 255"),
    Case("any image", "arrays where tensors are expected", detected([PHOTO]), right=lambda found: len(found) == 1),
    Case("torchvision's detections", "a dict", labelled(FOUND), right=is_named),
    Case("a list of one", "what a detector returns", labelled([FOUND]), right=lambda found: is_named(found[0])),
    Case("soft masks of torchvision", "(N, 1, H, W)", labelled({**FOUND, "masks": torch.rand(2, 1, *SIZE)}),
         right=lambda found: found["masks"].shape == (2, 1, *SIZE) and len(found["labels"]) == 2),
    Case("no detections", "an empty frame", labelled({"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}),
         right=lambda found: found["text_labels"] == [] and found["embeddings"].shape[0] == 0),
    Case("two images", "a batch", labelled([FOUND, FOUND]), "those of one image"),
    Case("boxes in 0-1", "target_sizes forgotten", labelled({**FOUND, "boxes": BOXES / 64}), "look normalised"),
    Case("boxes of another size", "a resized picture", labelled({**FOUND, "boxes": BOXES + 80}), "box 0 .* outside"),
    Case("scores of NaN", "half precision",
         labelled({**FOUND, "scores": torch.tensor([0.5, float("nan")])}), "detection 1 is no"),
    Case("scores of percent", "confidences above 1",
         labelled({**FOUND, "scores": torch.tensor([90.0, 40])}, weight=0.5),
         "divide percentages by 100"),
    Case("masks for some", "fewer masks than boxes",
         labelled({**FOUND, "masks": torch.ones(1, 1, *SIZE)}), "1 masks for 2 boxes"),
    Case("None as detections", "a detector that returned nothing", labelled(None), "NoneType; give supervision"),
    Case("a path as detections", "a .pt file", labelled("yolo.pt"), "str; give what the detector returns"),
    Case("a detector as detections", "the model in place of its result",
         labelled(Trainer()), "Trainer.*what the detector returns"),
    Case("plain rows", "(N, 6)", labelled(np.ones((2, 6))), r"RegionClassifier.*boxes=found\[:, :4\]"),
    Case("plain boxes", "a tensor", labelled(BOXES), "RegionClassifier"),
    Case("instances of detectron2", "its objects are not touched", labelled(Strange()), "from_detectron2"),
    Case("a dict of detectron2", '{"instances": ...}', labelled({"instances": Strange()}), "from_detectron2"),
    Case("records of SAM", "dicts with segmentation", labelled([{"segmentation": 1}] * 2), "regions=masks"),
    Case("outputs of the first DETR", "pred_logits",
         labelled({"pred_logits": 1, "pred_boxes": 2}), "post_process_object"),
    Case("boxes of OWLv2 are of a square", "raw outputs of an image that is none",
         labelled(Owlv2ObjectDetectionOutput(
             logits=torch.tensor([[[3.0, -1]]]), pred_boxes=torch.tensor([[[0.5, 0.3, 0.2, 0.2]]]))),
         right=lambda got: torch.allclose(got["boxes"], torch.tensor([[25.6, 12.8, 38.4, 25.6]]))),
    Case("a mask for each segment is no map", "return_binary_maps=True", labelled(segments(MAP[None].float())),
         right=as_the_map),
    Case("masks for some segments", "the same, cut", labelled(segments(torch.stack([MAP, MAP]))), "2 masks for 1"),
    Case("run lengths of segments", "return_coco_annotation=True", labelled(segments([[1, 5, 9, 2], [3, 4]])),
         "without return_coco_annotation"),
    Case("a generator", "stream=True", labelled(iter([FOUND])), "one by one"),
    Case("an empty list", "no images", labelled([]), "without anything"),
    Case("no image", "None with a dict", labelled(FOUND, None), "give the image"),
    Case("a hook of boxes in 0-1", "roi_hook",
         lambda f: roi_hook(classify(), LABELS)(PHOTO, BOXES / 64, [0.5, 0.5]), "normalised"),
    Case("a hook of scores of NaN", "roi_hook",
         lambda f: roi_hook(classify(), LABELS)(PHOTO, BOXES, [float("nan")] * 2), "NaN"),
    Case("rescoring NaN", "probabilities", lambda f: rescore(BOXES, [0.5, 0.5], np.full((2, 2), np.nan)), "NaN"),
    Case("rescoring boxes in 0-1", "with the image's size",
         lambda f: rescore(BOXES / 64, [0.5, 0.5], np.full((2, 2), 0.5), image_size=SIZE), "normalised"),
)  # fmt: skip


def results(**rows: Any) -> Any:
    from ultralytics.engine.results import Results

    return Results(PHOTO[..., ::-1], path="a.png", names={0: "person"}, **rows)


def rows(columns: int = 6) -> torch.Tensor:
    return torch.cat([BOXES, torch.full((2, columns - 4), 0.0)], dim=1)


ULTRALYTICS = (
    Case("Results are named", "ultralytics", lambda f: labelled([results(boxes=rows())])(f)[0],
         right=lambda found: found.names == {0: "cat", 1: "dog", 2: "nothing"}),
    Case("tracks stay", "model.track",
         lambda f: labelled(results(boxes=rows(7)))(f), right=lambda got: got.boxes.is_track),
    Case("a picture of its own", "image=None",
         lambda f: labelled(results(boxes=rows()), None)(f), right=lambda got: len(got) == 2),
    Case("Results of another image", "a frame late",
         lambda f: labelled(results(boxes=rows()), PHOTO[:9])(f), "this one is"),
    Case("rotated Results", "OBB models", lambda f: labelled(results(obb=torch.ones(1, 7)))(f), "rotated boxes"),
    Case("Results of a classifier", "probs", lambda f: labelled(results(probs=torch.ones(3)))(f), "no boxes"),
)  # fmt: skip


@cases(*TABLE)
def test_detections_are_read_or_refused(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)


@pytest.mark.skipif(find_spec("ultralytics") is None, reason="the extra `detectors` is not installed")
@cases(*ULTRALYTICS)
def test_results_of_ultralytics_are_read_or_refused(case: Case, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    case.hold(tmp_path)
