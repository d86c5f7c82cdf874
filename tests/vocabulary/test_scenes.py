"""Background words that each image chooses, and boxes that are parts of others."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from conftest import PHOTOS
from densevl import RegionClassifier, Segmenter
from densevl.errors import OptionError
from densevl.integrations.torchvision import rescore
from densevl.vocabulary import Background, LabelSet
from densevl.vocabulary.background import PLACES
from densevl.vocabulary.text_classifier import TextClassifier

CAT = PHOTOS / "cat.jpg"
SMALL = {"templates": "photo", "protocol": {"short_side": 48, "crop": 32, "stride": 16}}


@pytest.mark.parametrize(
    ("spec", "count", "words"),
    [("scenes", 5, ()), ("scenes:8", 8, ()), ("wall, scenes:2, 0.1", 2, ("wall",))],
)
def test_how_many_places_a_policy_asks_for(spec, count, words) -> None:
    policy = Background.parse(spec)
    assert (policy.scenes, policy.words) == (count, words)
    assert f"{count} of {len(PLACES)} places" in str(policy)


@pytest.mark.parametrize("spec", ["scenes:0", "scenes:x", "scenes:", "scenes:9999", "scene", "Scenes"])
def test_another_form_of_it_is_one_line(spec) -> None:
    with pytest.raises(OptionError) as caught:
        Background.parse(spec)
    assert "\n" not in str(caught.value)


def test_places_are_plain_words_and_those_of_labels_are_left_out() -> None:
    assert len(set(PLACES)) == len(PLACES) >= 100
    free = Background.parse(["snow"]).free_places(["white walls", "sea lion", "grass"])
    assert not {"wall", "brick wall", "grass", "snow"} & set(free)
    assert {"sea", "lawn", "glass"} <= set(free)


def test_the_result_is_that_of_the_chosen_words_given_by_hand(tiny) -> None:
    segment, labels = Segmenter(tiny, **SMALL), LabelSet.parse("cat,wooden wall")
    result = segment(CAT, labels, background="scenes:3")
    rows = TextClassifier(tiny, "photo").encode(LabelSet(PLACES, tuple((p,) for p in PLACES))).vectors.double().numpy()
    from PIL import Image

    pixels = tiny.preprocess(Image.fromarray(result.image))[None]
    likeness = rows @ tiny.encode_image(pixels)[0].double().numpy()
    order = [PLACES[at] for at in np.argsort(-likeness) if not PLACES[at].endswith("wall")]
    assert result.meta["scenes"] == order[:3]
    by_hand = segment(CAT, labels, background=order[:3])
    assert "scenes" not in by_hand.meta
    np.testing.assert_array_equal(result.labels, by_hand.labels)
    (together,) = segment.many([CAT], labels, background="scenes:3")
    np.testing.assert_array_equal(result.labels, together.labels)
    name = RegionClassifier(tiny, proposals=None, **SMALL)
    found, wanted = (name(CAT, labels, boxes=[[9, 9, 90, 90]], background=b) for b in ("scenes:3", order[:3]))
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
    assert found.meta["scenes"] == order[:3]


def test_where_there_is_no_image_to_choose_it_is_said(tiny) -> None:
    with pytest.raises(OptionError, match="chosen for each photo"):
        TextClassifier(tiny).encode(LabelSet.parse("cat"), Background.parse("scenes"))
    with pytest.raises(OptionError, match="does not compare whole images"):
        Segmenter("photo")(CAT, "cat", background="scenes")


def test_boxes_within_a_larger_one_of_their_label_are_dropped() -> None:
    boxes = torch.rand(40, 2).repeat(1, 2) * 60
    boxes[:, 2:] += 5 + torch.rand(40, 2) * 60
    probs = torch.rand(40, 2).softmax(1)
    how = {"score_thresh": 0.0, "nms_thresh": 0.9, "detections_per_img": 1000}
    whole, found = (rescore(boxes, torch.full((40,), 0.9), probs, parts=parts, **how) for parts in (None, 0.7))
    kept = []
    for i, j in itertools.product(range(len(whole["boxes"])), repeat=2):
        (a, b), (x, y) = (whole["boxes"][[i, j]].double().numpy(), whole["labels"][[i, j]].tolist())
        shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        own, other = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
        if x == y and other > own and shared > 0.7 * own:
            kept.append(i)
    wanted = [i for i in range(len(whole["boxes"])) if i not in kept]
    assert 0 < len(wanted) < len(whole["boxes"])
    assert torch.equal(found["boxes"], whole["boxes"][wanted])
    with pytest.raises(OptionError, match="parts is 0"):
        rescore(boxes, torch.full((40,), 0.9), probs, parts=0)
