"""Torchvision detectors with words for classes, end to end on tiny random ones: their form is torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, box_iou

from conftest import random_clip, wrap
from densevl.backbones import InferenceProtocol
from densevl.errors import DensevlError, LabelError, ModelError
from densevl.integrations import CosinePredictor, OpenVocabularyDetector, candidates, replace_predictor, rescore
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.vocabulary import LabelSet

LABELS = ["cat", "dog | puppy", "sky"]
KEPT = {"box_detections_per_img": 20, "rpn_post_nms_top_n_test": 60, "min_size": 64, "max_size": 96}


class Backbone(nn.Module):
    """One convolution of stride 8."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 8, stride=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu()


def rcnn(kind: type = FasterRCNN) -> nn.Module:
    torch.manual_seed(0)
    pools = {"box_roi_pool": MultiScaleRoIAlign(["0"], 3, 2)}
    if kind is MaskRCNN:
        pools["mask_roi_pool"] = MultiScaleRoIAlign(["0"], 4, 2)
    anchors = AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),))
    return kind(Backbone(), 6, rpn_anchor_generator=anchors, **pools, **KEPT).eval()


def retina() -> nn.Module:
    torch.manual_seed(0)
    anchors = AnchorGenerator(((16, 32),), ((1.0,),))
    return RetinaNet(Backbone(), 6, anchor_generator=anchors, score_thresh=0.0, min_size=64, max_size=96).eval()


@pytest.fixture(scope="module")
def classify() -> RegionClassifier:
    protocol = InferenceProtocol(short_side=48, crop=32, stride=16)
    return RegionClassifier(wrap(random_clip()), "cls_mask", proposals=None, templates="photo", protocol=protocol)


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 60, 90, generator=generator), torch.rand(3, 48, 40, generator=generator)]


@pytest.mark.parametrize("make", [rcnn, lambda: rcnn(MaskRCNN), retina], ids=["faster", "mask", "retinanet"])
def test_it_works_like_the_detector(make, classify, images) -> None:
    detector = make()
    detect = OpenVocabularyDetector(detector, classify, LABELS, top=15, score_thresh=0.01)
    plain, found = detector(images), detect(images)
    assert len(found) == len(images)
    for theirs, ours, image in zip(plain, found, images, strict=True):
        assert set(ours) == set(theirs)
        count = len(ours["boxes"])
        assert 0 < count <= 100
        for key in theirs:
            assert ours[key].dtype == theirs[key].dtype
            assert ours[key].shape == (count, *theirs[key].shape[1:])
        assert (ours["scores"].diff() <= 0).all()
        assert ours["scores"].min() > 0.01
        assert set(ours["labels"].tolist()) <= {1, 2, 3}
        height, width = image.shape[-2:]
        assert (ours["boxes"] >= 0).all()
        assert (ours["boxes"] <= torch.tensor([width, height, width, height])).all()
        for label in ours["labels"].unique():
            same = ours["boxes"][ours["labels"] == label]
            assert (box_iou(same, same).fill_diagonal_(0) <= 0.5).all()
    assert detect.categories == ("__background__", "cat", "dog", "sky")


def test_labels_are_the_classifier_s_and_can_be_changed(classify, images) -> None:
    detect = OpenVocabularyDetector(rcnn(), classify, LABELS, top=5, weight=1.0, score_thresh=0.0, nms_thresh=1.0)
    found = detect(images[:1])[0]
    boxes = candidates(detect.detector, images[:1], top=5)[0]["boxes"]
    result = classify(images[0], LABELS, boxes=boxes)
    best = found["boxes"][0]
    index = int((boxes - best).abs().sum(dim=1).argmin())
    assert int(found["labels"][0]) - 1 == int(result.scores[index].argmax())
    detect.set_labels(["tree", "car"])
    assert set(detect(images[:1])[0]["labels"].tolist()) <= {1, 2}
    with pytest.raises(LabelError):
        detect.set_labels("")


def test_candidates_are_surest_first_and_of_no_class(images) -> None:
    detector = rcnn()
    for one, image in zip(candidates(detector, images, top=8), images, strict=True):
        assert set(one) == {"boxes", "scores"}
        assert len(one["boxes"]) <= 8
        assert (one["scores"].diff() <= 1e-6).all()
        assert ((one["scores"] > 0) & (one["scores"] < 1)).all()
        assert (box_iou(one["boxes"], one["boxes"]).fill_diagonal_(0) <= 0.7 + 1e-3).all()
        assert (one["boxes"][:, 2] <= image.shape[-1]).all()


@pytest.mark.parametrize("make", [rcnn, lambda: rcnn(MaskRCNN)], ids=["faster", "mask"])
def test_an_image_without_candidates_is_an_empty_detection(make, classify, images) -> None:
    detect = OpenVocabularyDetector(make(), classify, LABELS, top=0)
    found = detect(images)
    assert [one["boxes"].shape for one in found] == [(0, 4)] * 2
    assert [one["labels"].dtype for one in found] == [torch.int64] * 2
    assert detect([]) == []


def test_training_mode_is_refused(classify, images) -> None:
    detect = OpenVocabularyDetector(rcnn().train(), classify, LABELS)
    assert not detect.detector.training
    with pytest.raises(DensevlError, match="call eval"):
        detect.train()(images)


@pytest.mark.parametrize("background", ["zero", "learned", "words"])
def test_a_cosine_head_takes_the_predictor_s_place(background, classify, images) -> None:
    detector = rcnn()
    before = candidates(detector, images)[0]["boxes"]
    head = replace_predictor(detector, classify, LABELS, background=background, words=["grass"])
    detector.roi_heads.score_thresh = 0.0
    found = detector(images)
    assert detector.roi_heads.box_predictor is head
    assert set(found[0]) == {"boxes", "labels", "scores"}
    assert set(found[0]["labels"].tolist()) <= {1, 2, 3}
    assert len(before) > 0
    features = torch.randn(5, head.refine.in_features)
    logits, boxes = head(features)
    assert logits.shape == (5, 4)
    assert boxes.shape == (5, 16)
    rows = nn.functional.normalize(head.project(features), dim=1)
    cosines = classify.backbone.logit_scale * rows @ head.text.T
    torch.testing.assert_close(logits[:, 2], cosines[:, 1:3].amax(dim=1), msg="the better of dog and puppy")
    void = {"zero": torch.zeros(5), "words": cosines[:, 4]}
    if background in void:
        torch.testing.assert_close(logits[:, 0], void[background])


def test_a_cosine_head_trains_and_takes_other_words(classify, images) -> None:
    detector = rcnn().train()
    head = replace_predictor(detector, classify, LABELS)
    targets = [{"boxes": torch.tensor([[5.0, 5, 30, 30]]), "labels": torch.tensor([2])}] * 2
    losses = detector(images, targets)
    losses["loss_classifier"].backward()
    assert head.project.weight.grad.abs().sum() > 0
    assert head.void.grad is not None
    text = classify.embed_text(LabelSet.parse(["tree", "car"]), classify.policy("none"))
    head.set_text(text)
    assert head(torch.randn(2, head.refine.in_features))[0].shape == (2, 3)
    assert "text" not in head.state_dict(), "words are no weights"


def test_cosine_heads_refuse_what_does_not_fit(classify) -> None:
    text = classify.embed_text(LabelSet.parse(LABELS), classify.policy("none"))
    with pytest.raises(ModelError, match="Mask R-CNN"):
        replace_predictor(rcnn(MaskRCNN), classify, LABELS)
    with pytest.raises(ModelError, match="RetinaNet has no roi_heads"):
        replace_predictor(retina(), classify, LABELS)
    with pytest.raises(ModelError, match="background is 'void'"):
        CosinePredictor(16, text, background="void")
    with pytest.raises(ModelError, match="has no background words"):
        CosinePredictor(16, text, background="words")
    with pytest.raises(ModelError, match="16 wide, text 24"):
        CosinePredictor(16, text, project=False)
    assert isinstance(CosinePredictor(24, text, project=False).project, nn.Identity)


def test_five_thousand_boxes(classify) -> None:
    generator = np.random.default_rng(0)
    corner = generator.uniform(0, 60, (5000, 2))
    boxes = np.concatenate([corner, corner + generator.uniform(1, 30, (5000, 2))], axis=1)
    image = generator.integers(0, 255, (64, 96, 3), np.uint8)
    result = classify(image, LABELS, boxes=boxes)
    found = rescore(boxes, generator.random(5000), result.scores, result.nothing, image_size=(64, 96))
    assert len(found["boxes"]) == 100
