"""Objectness and CLIP's probabilities as one: the formula, its edges, and the hook for heads with background last."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import close, random_clip, wrap
from densevl.backbones import InferenceProtocol
from densevl.errors import LabelError, ProposalError
from densevl.integrations import fused_probs, objectness, rescore, roi_hook
from densevl.pipelines.regions.classifier import RegionClassifier

LABELS = ["cat", "dog | puppy", "sky"]


@pytest.fixture(scope="module")
def classify() -> RegionClassifier:
    protocol = InferenceProtocol(short_side=48, crop=32, stride=16)
    return RegionClassifier(wrap(random_clip()), "cls_mask", proposals=None, templates="photo", protocol=protocol)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)


@pytest.mark.parametrize(
    ("scores", "background", "want"),
    [
        ([0.2, 1.0], 0, [0.2, 1]),
        ([[0.9, 0.1], [0.25, 0.75]], 0, [0.1, 0.75]),
        (np.array([[0.1, 0.2, 0.7]], np.float64), -1, [0.3]),
        (torch.zeros(0, 5), -1, []),
        (np.zeros(0), 0, []),
    ],
    ids=["plain", "background first", "background last", "no boxes", "no scores"],
)
def test_objectness_is_what_background_leaves(scores, background, want) -> None:
    close(objectness(scores, background), want)


@pytest.mark.parametrize("scores", [[3.2, -1], [[1.5, 0.2]], [float("nan")], [[[0.5]]], [[0.5]]])
def test_logits_and_odd_shapes_are_refused_in_one_line(scores) -> None:
    with pytest.raises(ProposalError, match="detector scores") as caught:
        objectness(scores)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, [0.2, 0.45, 0.45]])
@pytest.mark.parametrize("worded", [True, False])
def test_fusing_is_the_weighted_geometric_mean(weight, worded) -> None:
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(6, 4, generator=generator).softmax(dim=1)
    sure = torch.rand(6, generator=generator)
    rest = clip[:, 3] if worded else None
    own = torch.as_tensor(weight).expand(3)
    classes = sure[:, None] ** (1 - own) * clip[:, :3] ** own
    void = 1 - sure
    if worded:
        void = void ** (1 - own.mean()) * clip[:, 3] ** own.mean()
    want = torch.cat([classes, void[:, None]], dim=1)
    found = fused_probs(sure, clip[:, :3], rest, weight=weight)
    torch.testing.assert_close(found, want / want.sum(dim=1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_tiny_probabilities_do_not_vanish_and_empty_regions_are_background() -> None:
    probs = torch.tensor([[1e-35, 1e-30], [0.0, 0.0]])
    found = fused_probs(torch.tensor([0.9, 1.0]), probs, torch.tensor([1.0, 0.0]), weight=1.0)
    assert found[0, 1] / found[0, 0] == pytest.approx(1e5, rel=1e-2)
    assert found[1].tolist() == [0, 0, 1]
    assert fused_probs(torch.zeros(0), np.zeros((0, 7), np.float32)).shape == (0, 8)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"weight": 1.5}, "weight is 1.5"),
        ({"probs": np.ones((3, 2), np.float32)}, "2 boxes with probabilities"),
        ({"probs": np.ones(2, np.float32)}, "2 boxes with probabilities"),
    ],
)
def test_what_does_not_fit_is_refused(given, match) -> None:
    with pytest.raises(ProposalError, match=match):
        fused_probs(torch.ones(2), **{"probs": np.full((2, 3), 0.3, np.float32), **given})


def test_rescoring_follows_torchvision() -> None:
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9.5], [30, 30, 50.5, 60], [5, 5, 5, 9], [-9, -9, 4, 4]]
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.02, 0.9], [0.9, 0.1], [0.5, 0.4]], np.float32)
    softmax = [[0.1, 0.9], [0.1, 0.9], [0.2, 0.8], [0.1, 0.9], [0.9, 0.1]]
    found = rescore(boxes, np.array(softmax), probs, 1 - probs.sum(axis=1), weight=1.0, image_size=(40, 50))
    pairs = list(zip(found["index"].tolist(), found["labels"].tolist(), strict=True))
    assert (found["scores"].diff() <= 0).all()
    assert (0, 1) in pairs
    assert (1, 1) not in pairs, "NMS within a class"
    assert (1, 2) in pairs, "which is none of (0, 2), the better one goes"
    assert (2, 1) not in pairs, "0.02 is under 0.05"
    assert 3 not in found["index"], "a box of no width"
    assert found["boxes"][found["index"] == 2].tolist() == [[30, 30, 50, 40]], "cut to the image"
    few = rescore(boxes, np.array(softmax), probs, detections_per_img=1)
    assert len(few["boxes"]) == 1
    for empty in ([], np.zeros((0, 4)), torch.zeros(0, 4)):
        nothing = rescore(empty, [], np.zeros((0, 2), np.float32))
        assert [nothing[key].shape for key in ("boxes", "labels", "scores")] == [(0, 4), (0,), (0,)]
    with pytest.raises(ProposalError, match="for 1 scores"):
        rescore(boxes, [0.5], probs)


def multiclass_nms(boxes, scores, score_thr: float, iou_threshold: float, max_num: int):
    """The shape of mmdet's and detectron2's last step: scores (N, C + 1), the last column dropped."""
    from torchvision.ops import batched_nms

    scores = scores[:, :-1]
    index, label = torch.nonzero(scores > score_thr, as_tuple=True)
    kept = batched_nms(boxes[index], scores[index, label], label, iou_threshold)[:max_num]
    return boxes[index[kept]], scores[index[kept], label[kept]], label[kept]


def test_the_hook_sits_in_an_roi_head(classify, photo) -> None:
    """A head of 80 classes as both frameworks have it: refined boxes, and softmax with background last."""

    class Boxes:  # detectron2's holds its tensor so
        __module__ = "detectron2.structures.boxes"

        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

    torch.manual_seed(0)
    corners = torch.tensor([[3.2, 4.1, 40.0, 50.5], [3.0, 4.0, 41.0, 50.0], [50, 10, 95.5, 60], [-20, -20, 10, 12]])
    softmax = (3 * torch.randn(4, 81)).softmax(dim=1)
    hook = roi_hook(classify, LABELS, weight=0.5, background="none")
    labels, scores, probs = hook(photo, corners, softmax)
    assert probs.shape == (4, 4)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(4))
    assert (labels == probs.argmax(dim=1)).all()
    assert (scores == probs.amax(dim=1)).all()
    result = classify(photo, LABELS, boxes=corners, background="none")
    want = fused_probs(1 - softmax[:, -1], result.scores, weight=0.5)
    torch.testing.assert_close(probs, want)
    boxes, kept, names = multiclass_nms(corners, probs, 0.05, 0.5, 100)
    assert boxes.shape == (len(kept), 4)
    assert int(names.max()) < 3, "background is dropped by the framework"
    torch.testing.assert_close(hook(photo, Boxes(corners), softmax).probs, probs)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, list], ids=["numpy", "torch", "list"])
def test_hooks_return_what_they_are_given(kind, classify, photo) -> None:
    found = roi_hook(classify, LABELS)(photo, kind([[1.0, 2, 30, 40]]), kind([0.8]))
    assert all(isinstance(part, torch.Tensor) == (kind is torch.as_tensor) for part in found)
    none = roi_hook(classify, LABELS)(photo, kind([]), kind([]))
    assert [part.shape for part in none] == [(0,), (0,), (0, 4)]


def test_a_box_outside_the_image_is_background(classify, photo) -> None:
    found = roi_hook(classify, LABELS)(photo, np.array([[200.0, 200, 300, 300]]), np.array([0.9]))
    assert found.labels.tolist() == [3]
    assert found.scores[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("boxes", "scores", "match"),
    [
        (np.zeros((2, 320)), [0.5, 0.5], "a box for each class, take that of the best"),
        (np.zeros((2, 4)), [0.5], "for 1 scores"),
        (np.zeros((1, 4)), [7.0], "span 7 to 7"),
        (np.array([[0, 0, np.nan, 5]]), [0.5], "box 0"),
    ],
)
def test_hooks_refuse_in_one_line(boxes, scores, match, classify, photo) -> None:
    with pytest.raises(ProposalError, match=match) as caught:
        roi_hook(classify, LABELS)(photo, boxes, scores)
    assert "\n" not in str(caught.value)


def test_hooks_refuse_labels_at_once(classify) -> None:
    with pytest.raises(LabelError):
        roi_hook(classify, [])
