"""Names for `supervision.Detections`: boxes, masks, compact masks, none at all."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

sv = pytest.importorskip("supervision")

from conftest import close, random_clip, wrap
from densevl.backbones import InferenceProtocol
from densevl.errors import LabelError, ProposalError
from densevl.integrations import label_detections
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.vocabulary import LabelSet

LABELS = ["cat", "dog | puppy", "sky"]
SIZE = (64, 96)
BOXES = np.array([[4.5, 3.25, 40, 50], [50, 10, 90.5, 60], [-20, -20, 12, 30], [70, 40, 200, 300]], np.float32)


@pytest.fixture(scope="module")
def classify() -> RegionClassifier:
    protocol = InferenceProtocol(short_side=48, crop=32, stride=16)
    return RegionClassifier(wrap(random_clip()), "pool+cls_mask", proposals=None, templates="photo", protocol=protocol)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)


def masks() -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([np.hypot(y - 26, x - 22) < 15, (y > 12) & (y < 50) & (x > 55) & (x < 80), y < 20, y < 0])


def test_boxes_get_names_confidences_and_embeddings(classify, photo) -> None:
    given = sv.Detections(
        xyxy=BOXES, confidence=np.array([0.9, 0.5, 0.3, 0.2]), tracker_id=np.arange(4), data={"own": np.arange(4)}
    )
    found = label_detections(photo, given, LABELS, classify)
    result = classify(photo, LABELS, boxes=BOXES)
    assert found.class_id.tolist() == result.labels.tolist()
    assert found.data["class_name"].tolist() == list(result.found)
    close(found.confidence, result.confidence)
    assert found.data["embedding"].shape == (4, classify.backbone.embed_dim)
    close(np.linalg.norm(found.data["embedding"], axis=1), 1)
    assert found.data["proposal_confidence"].tolist() == [0.9, 0.5, 0.3, 0.2]
    assert found.data["own"].tolist() == found.tracker_id.tolist() == [0, 1, 2, 3]
    assert (found.xyxy == BOXES).all()
    assert given.class_id is None, "the argument is not changed"
    assert set(given.data) == {"own"}


def test_the_embedding_of_several_operators_ranks_words_as_the_fused_scores_do(classify, photo) -> None:
    found = label_detections(photo, sv.Detections(xyxy=BOXES), LABELS, classify, background="none")
    text = classify.embed_text(LabelSet.parse(LABELS), classify.policy("none"))
    cosines = found.data["embedding"] @ text.vectors.numpy().T
    assert (np.array([0, 1, 1, 2])[cosines.argmax(axis=1)] == found.class_id).all()


def test_masks_compact_or_not_mean_the_same(classify, photo, monkeypatch) -> None:
    boxes = np.array([[7, 11, 37, 41], [56, 13, 79, 49], [0, 0, 95, 19], [0, 0, 4, 9]], np.float32)
    dense = label_detections(photo, sv.Detections(xyxy=boxes, mask=masks()), LABELS, classify)
    by_mask = classify(photo, LABELS, regions=masks()[:3])
    close(dense.confidence[:3], by_mask.confidence)
    close(dense.confidence[3:], classify(photo, LABELS, boxes=boxes[3:]).confidence)  # the last mask is empty
    compact_mask = pytest.importorskip("supervision.detection.compact_mask").CompactMask
    compact = compact_mask.from_dense(masks(), boxes, image_shape=SIZE)

    def refuse(self, *args, **named):
        raise AssertionError("all masks at once")

    monkeypatch.setattr(compact_mask, "to_dense", refuse)
    monkeypatch.setattr(compact_mask, "__array__", refuse)
    found = label_detections(photo, sv.Detections(xyxy=boxes, mask=compact), LABELS, classify)
    assert isinstance(found.mask, compact_mask)
    assert found.class_id.tolist() == dense.class_id.tolist()
    close(found.confidence, dense.confidence)


def test_what_is_nothing_has_the_id_behind_the_last(classify, photo) -> None:
    given = sv.Detections(xyxy=BOXES)
    strict = label_detections(photo, given, LABELS, classify, background=0.999)
    assert strict.class_id.tolist() == [3] * 4
    assert set(strict.data["class_name"]) == {"nothing"}
    assert len(label_detections(photo, given, LABELS, classify, background=0.999, drop_nothing=True)) == 0


@pytest.mark.parametrize("confidence", [None, np.zeros(0, np.float32)])
def test_no_detections_stay_none_and_merge(confidence, classify, photo, monkeypatch) -> None:
    given = sv.Detections(xyxy=np.zeros((0, 4), np.float32), confidence=confidence)
    full = sv.Detections(xyxy=BOXES, confidence=None if confidence is None else np.ones(4))
    some = label_detections(photo, full, LABELS, classify)
    monkeypatch.setattr(classify, "embed", None)  # the model is not asked
    found = label_detections(photo, given, LABELS, classify)
    assert len(found) == 0
    assert found.class_id.shape == found.confidence.shape == found.data["class_name"].shape == (0,)
    assert found.data["embedding"].shape == (0, classify.backbone.embed_dim)
    assert set(found.data) == set(some.data)
    assert len(sv.Detections.merge([some, found])) == 4
    with pytest.raises(LabelError):
        label_detections(photo, given, [], classify)


def test_the_detections_own_confidence_may_have_a_say(classify, photo) -> None:
    sure = np.array([0.99, 0.99, 0.01, 0.5])
    plain = label_detections(photo, sv.Detections(xyxy=BOXES, confidence=sure), LABELS, classify, background="none")
    mixed = label_detections(
        photo, sv.Detections(xyxy=BOXES, confidence=sure), LABELS, classify, background="none", weight=0.3
    )
    assert mixed.class_id[2] == 3, "the detector does not believe in it"
    assert plain.class_id[2] < 3
    with pytest.raises(ProposalError, match="they have none"):
        label_detections(photo, sv.Detections(xyxy=BOXES), LABELS, classify, weight=0.3)


def test_masks_of_another_image_are_refused(classify, photo) -> None:
    wrong = sv.Detections(xyxy=BOXES[:1], mask=np.ones((1, 5, 5), bool))
    with pytest.raises(ProposalError, match=r"mask 0 is \(5, 5\), the image \(64, 96\)"):
        label_detections(photo, wrong, LABELS, classify)


def test_five_thousand_boxes_in_one_call(classify, photo) -> None:
    corner = np.random.default_rng(0).uniform(0, 60, (5000, 2))
    found = label_detections(photo, sv.Detections(xyxy=np.concatenate([corner, corner + 9], axis=1)), LABELS, classify)
    assert len(found) == 5000
    assert found.data["embedding"].shape == (5000, classify.backbone.embed_dim)


def test_none_of_the_packages_is_imported() -> None:
    code = (
        "import sys\n"
        "for name in ('supervision', 'ultralytics', 'transformers'): sys.modules[name] = None\n"
        "from densevl.integrations import label_detections\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
