"""Detections of ultralytics and transformers, from the packages themselves with random weights (extra `detectors`)."""

from __future__ import annotations

import os
from typing import Any

os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "HF_HUB_OFFLINE": "1"}  # read on import

import numpy as np
import pytest
import torch

from conftest import close, random_clip, wrap
from densevl.backbones import InferenceProtocol
from densevl.errors import ModelError, ProposalError
from densevl.integrations import OpenVocabularyDetector, label_detections
from densevl.pipelines.regions.classifier import RegionClassifier

LABELS = ["cat", "dog | puppy", "sky"]
SIZE = (96, 128)
BOXES = torch.tensor([[4.0, 3, 60, 50], [50, 10, 120, 90]])


@pytest.fixture(scope="module")
def classify() -> RegionClassifier:
    protocol = InferenceProtocol(short_side=48, crop=32, stride=16)
    return RegionClassifier(wrap(random_clip()), "cls_mask", proposals=None, templates="photo", protocol=protocol)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def yolo(tmp_path_factory) -> Any:
    os.environ["YOLO_CONFIG_DIR"] = str(tmp_path_factory.mktemp("yolo"))
    package = pytest.importorskip("ultralytics")
    return package.YOLO("yolov8n-seg.yaml")


@pytest.fixture(scope="module")
def results(yolo, photo) -> Any:
    """What a YOLO returns: a list with the results of its one image, BGR."""
    found = yolo(photo[..., ::-1], imgsz=64, conf=1e-5, iou=0.99, max_det=4, verbose=False)
    assert len(found[0].boxes) > 0
    assert found[0].masks.data.shape[1:] == (64, 64), "the network's own size, padded"
    return found


def hand_made(kind: Any, photo: np.ndarray, **rows: Any) -> Any:
    return kind(photo[..., ::-1], path="a.png", names={0: "person", 5: "bus"}, **rows)


def test_what_a_yolo_returns_is_named_as_it_is(results, photo, classify) -> None:
    named = label_detections(photo, results, LABELS, classify)
    assert isinstance(named, list)
    assert type(named[0]) is type(results[0])
    assert named[0].names == {0: "cat", 1: "dog", 2: "sky", 3: "nothing"}
    assert torch.equal(named[0].boxes.xyxy, results[0].boxes.xyxy)
    assert named[0].summary()[0]["name"] in named[0].names.values()
    assert results[0].names[0] not in LABELS, "the argument is not changed"
    assert label_detections(None, results[0], LABELS, classify).boxes.data.equal(named[0].boxes.data), "its own picture"


def test_boxes_tracks_and_nothing(results, photo, classify) -> None:
    kind = type(results[0])
    rows = torch.cat([BOXES, torch.tensor([[7.0, 0.9, 5], [8, 0.4, 0]])], dim=1)  # a track, a confidence, a class
    given = hand_made(kind, photo, boxes=rows)
    named = label_detections(photo, given, LABELS, classify, background="none")
    expected = classify(photo, LABELS, boxes=BOXES, background="none")
    assert named.boxes.cls.int().tolist() == expected.labels.tolist()
    close(named.boxes.conf, expected.confidence)
    assert named.boxes.id.tolist() == [7, 8]
    arrays = label_detections(photo, given.numpy(), LABELS, classify, background="none")
    assert isinstance(arrays.boxes.data, np.ndarray)
    close(arrays.boxes.data, named.boxes.data)
    assert len(label_detections(photo, given, LABELS, classify, background=0.9999, drop_nothing=True)) == 0
    assert len(label_detections(photo, hand_made(kind, photo, boxes=rows[:0]), LABELS, classify)) == 0
    mixed = label_detections(photo, given, LABELS, classify, background="none", weight=0.0)
    assert mixed.boxes.cls.int().tolist()[1] == 3, "surer of nothing, at 0.4"


def test_masks_are_read_at_the_size_of_the_image(results, photo, classify, monkeypatch) -> None:
    sv = pytest.importorskip("supervision")
    seen: list[Any] = []
    plain = type(classify).__call__
    monkeypatch.setattr(type(classify), "__call__", lambda *a, **k: seen.append(k["regions"]) or plain(*a, **k))
    inner = torch.zeros(2, 64, 64)
    inner[0, 12:30, 2:30] = 1  # rows 8 to 56 are the image, the rest is padding
    given = hand_made(
        type(results[0]), photo, boxes=torch.cat([BOXES, torch.tensor([[1.0, 5]] * 2)], dim=1), masks=inner
    )
    label_detections(photo, given, LABELS, classify)
    theirs = sv.Detections.from_ultralytics(given).mask[0]
    ours = seen[0].mask(0)
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.97
    assert seen[0].boxes[1].tolist() == BOXES[1].tolist(), "a mask without a pixel: its box"


def test_other_results_are_one_line(yolo, results, photo, classify) -> None:
    kind = type(results[0])
    wrong = {
        "this one is": hand_made(kind, np.zeros((9, 9, 3), np.uint8), boxes=torch.ones(1, 6)),
        "rotated boxes": hand_made(kind, photo, obb=torch.ones(1, 7)),
        "no boxes": hand_made(kind, photo, probs=torch.ones(3)),
        "give what the detector returns": yolo,
        "those of one image": results * 2,
        "is not a number": hand_made(kind, photo, boxes=torch.tensor([[1, 2, 30, 40, float("nan"), 0]])),
    }
    for said, given in wrong.items():
        with pytest.raises(ProposalError, match=said) as caught:
            label_detections(photo, given, LABELS, classify)
        assert "\n" not in str(caught.value)


def test_a_yolo_is_not_started(yolo, classify, monkeypatch) -> None:
    monkeypatch.setattr(type(yolo), "train", lambda self, trainer=None, **settings: pytest.fail("training started"))
    wrapper = torch.nn.Module()
    wrapper.add_module("yolo", yolo)
    for given, said in ((yolo, "label_detections"), (yolo.model, "label_detections"), (wrapper, "whose train")):
        with pytest.raises(ModelError, match=said):
            OpenVocabularyDetector(given, classify, LABELS)


def tiny_detr() -> tuple[Any, Any]:
    """A DETR and its processor: one layer of everything."""
    package = pytest.importorskip("transformers")
    backbone = package.ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"])
    small = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in
             {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()}  # fmt: skip
    config = package.DetrConfig(backbone_config=backbone, d_model=32, num_queries=6, num_labels=4, **small)
    processor = package.DetrImageProcessor(size={"height": 64, "width": 64}, do_pad=False)
    return package.DetrForObjectDetection(config).eval(), processor


@pytest.fixture(scope="module")
def detr(photo) -> tuple[Any, Any, Any]:
    model, processor = tiny_detr()
    with torch.no_grad():
        outputs = model(**processor(images=photo, return_tensors="pt"))
    outputs.logits[0, :3, 1] += 9  # three queries are sure
    return model, processor, outputs


def test_what_a_processor_returns_is_named_as_it_is(detr, photo, classify) -> None:
    _, processor, outputs = detr
    found = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[SIZE])
    named = label_detections(photo, found, LABELS, classify)[0]
    expected = classify(photo, LABELS, boxes=found[0]["boxes"])
    assert named["labels"].tolist() == [index if index >= 0 else 3 for index in expected.labels]
    close(named["scores"], expected.confidence)
    assert named["text_labels"] == list(expected.found)
    assert torch.equal(named["boxes"], found[0]["boxes"])
    assert torch.equal(named["proposal_scores"], found[0]["scores"])
    raw = label_detections(photo, outputs, LABELS, classify)
    assert len(raw["labels"]) == 3
    close(raw["boxes"], named["boxes"])
    close(raw["proposal_scores"], named["proposal_scores"])


def test_boxes_without_target_sizes_and_models_are_one_line(detr, photo, classify) -> None:
    model, processor, outputs = detr
    wrong = {
        "look normalised": processor.post_process_object_detection(outputs, threshold=0.0),
        "DetrForObjectDetection of transformers; give what": model,
        "outputs of 2 images": type(outputs)(logits=outputs.logits.repeat(2, 1, 1), pred_boxes=outputs.pred_boxes),
        "NaN": type(outputs)(logits=outputs.logits * float("nan"), pred_boxes=outputs.pred_boxes),
    }
    for said, given in wrong.items():
        with pytest.raises(ProposalError, match=said):
            label_detections(photo, given, LABELS, classify)
    with pytest.raises(ModelError, match="label_detections"):
        OpenVocabularyDetector(model, classify, LABELS)


def test_sigmoid_families_have_no_last_class_for_nothing(photo, classify) -> None:
    package = pytest.importorskip("transformers.models.conditional_detr.modeling_conditional_detr")
    logits = torch.full((1, 3, 4), -9.0)
    logits[0, 0, 3] = 9.0
    boxes = torch.tensor([[[0.5, 0.5, 0.25, 0.5]] * 3])
    given = package.ConditionalDetrObjectDetectionOutput(logits=logits, pred_boxes=boxes)
    assert label_detections(photo, given, LABELS, classify)["boxes"].tolist() == [[48, 24, 80, 72]]


def test_segments_of_transformers_get_words(photo, classify) -> None:
    numbers = torch.full(SIZE, -1, dtype=torch.int32)
    numbers[4:50, 5:60], numbers[60:90, 20:120] = 1, 2
    infos = [{"id": 1, "label_id": 5, "score": 0.9}, {"id": 2, "label_id": 0, "score": 0.8, "was_fused": False}]
    named = label_detections(photo, {"segmentation": numbers, "segments_info": infos}, LABELS, classify)
    expected = classify(photo, LABELS, regions=torch.stack([numbers == 1, numbers == 2]))
    assert [info["label"] for info in named["segments_info"]] == list(expected.found)
    assert named["segments_info"][1]["was_fused"] is False
    assert infos[0]["label_id"] == 5, "the argument is not changed"
