"""Boxes as evidence: a class stays in its boxes; the others are as they were."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import random_clip, wrap
from densevl import Segmenter
from densevl.errors import LabelError, ProposalError
from densevl.inference import WindowGrid
from densevl.pipelines.segmentation import boxes as own
from densevl.vocabulary import LabelSet
from pipelines.test_segments import LABELS, PHOTOS, SMALL


@pytest.fixture(scope="module")
def clip():
    return wrap(random_clip())


def test_a_boxed_class_is_likelier_inside_and_nowhere_else(clip) -> None:
    segment = Segmenter(clip, templates="photo", protocol=SMALL, background="none")
    name, box = "cat", (30, 60, 240, 280)
    plain = segment(PHOTOS / "cat.jpg", LABELS)
    boxed = segment(PHOTOS / "cat.jpg", LABELS, boxes={name: box})
    number = boxed.names.index(name)
    inside = np.zeros(plain.labels.shape, bool)
    inside[60:280, 30:240] = True
    far = np.ones(plain.labels.shape, bool)
    far[:350, :310] = False
    gained = segment.protocol.logit_scale * (boxed.scores - plain.scores)
    np.testing.assert_allclose(gained[number][150:190, 120:150], own.INSIDE, atol=1e-3)
    np.testing.assert_allclose(gained[number][far], own.OUTSIDE, atol=1e-3)
    others = [index for index in range(len(boxed.names)) if index != number]
    np.testing.assert_allclose(gained[others], 0, atol=1e-4)
    assert boxed.meta["boxes"] == {name: [list(box)]}
    several = segment(PHOTOS / "cat.jpg", LABELS, boxes={name: [box, (300, 200, 400, 290)]})
    assert (several.scores[number] >= boxed.scores[number] - 1e-5).all()


@pytest.mark.parametrize(
    ("boxes", "error", "said"),
    [
        ({"cats": (0, 0, 9, 9)}, LabelError, "'cats', which is not one of the labels.*closest: cat"),
        ({"cat": (0, 0, 0, 9)}, ProposalError, "box"),
        ({"cat": (900, 900, 950, 990)}, ProposalError, "box"),
        ({"cat": (1, 2)}, ProposalError, "box"),
        ({0: (0, 0, 9, 9)}, LabelError, "has 0, which is not one of the labels; they are '"),
        ([("cat", (0, 0, 9, 9))], LabelError, "dict from labels to boxes.*got a list"),
        (np.array([[0, 0, 9, 9]]), LabelError, "dict from labels to boxes.*got a ndarray"),
    ],
)
def test_a_box_that_cannot_be_is_one_line(clip, boxes, error, said) -> None:
    with pytest.raises(error, match=said) as caught:
        Segmenter(clip, templates="photo", protocol=SMALL)(PHOTOS / "cat.jpg", LABELS, boxes=boxes)
    assert "\n" not in str(caught.value)


def test_boxes_of_a_larger_copy_are_told(clip) -> None:
    segment = Segmenter(clip, templates="photo", protocol=SMALL)
    far = [(99, 74, 5000, 5000), (-60, 9, 40, 90), (0, 0, 90, 5000)]
    told = [text for text in segment(PHOTOS / "cat.jpg", LABELS, boxes={"cat": far}).warnings if "beyond" in text]
    assert len(told) == 1
    assert "box 0 is (99, 74, 5000, 5000) (2 more like it): more than half" in told[0]
    over_the_edge = segment(PHOTOS / "cat.jpg", LABELS, boxes={"cat": [(-30, 9, 40, 90)]})
    assert not any("beyond" in text for text in over_the_edge.warnings)


def test_a_detector_that_found_nothing_says_nothing_of_a_class(clip) -> None:
    segment = Segmenter(clip, templates="photo", protocol=SMALL)
    plain = segment(PHOTOS / "cat.jpg", LABELS)
    empty = segment(PHOTOS / "cat.jpg", LABELS, boxes={"cat": []})
    assert np.array_equal(plain.labels, empty.labels)
    assert "no box of 'cat', so it may be anywhere" in empty.warnings[-1]


def test_where_every_class_is_boxed_the_rest_is_nothing(clip) -> None:
    segment = Segmenter(clip, templates="photo", protocol=SMALL, background="none")
    boxed = segment(PHOTOS / "cat.jpg", ["cat"], boxes={"cat": (30, 60, 240, 280)})
    inside = np.zeros(boxed.labels.shape, bool)
    inside[60:280, 30:240] = True
    assert ((boxed.labels == 0) == inside).all()


def test_a_box_of_a_synonym_is_one_of_its_class(clip) -> None:
    segment = Segmenter(clip, templates="photo", protocol=SMALL, background="none")
    labels, box = ["cat | kitten", "dog"], (30, 60, 240, 280)
    named, synonym = (segment(PHOTOS / "cat.jpg", labels, boxes={name: box}) for name in ("cat", "kitten"))
    assert np.array_equal(named.labels, synonym.labels)
    assert synonym.meta["boxes"] == {"kitten": [list(box)]}


def test_a_box_smaller_than_a_token_is_in_somewhere() -> None:
    windows, labels = WindowGrid.place(64, 64, None, None, 16), LabelSet.parse(["cat", "dog"])
    prior = own.ClassBoxes.parse({"cat": (20.2, 20.2, 21, 21)}, labels, (64, 64)).prior(windows)
    assert prior[0].max() == own.INSIDE
    assert prior[0, 1, 1] == own.INSIDE
    assert (prior[0].flatten() == own.OUTSIDE).sum() == 15


def test_a_boxed_class_that_is_found_nowhere_is_told() -> None:
    boxed = own.ClassBoxes.parse({"cat": (0, 0, 9, 9)}, LabelSet.parse(["cat", "dog"]), (64, 64))
    assert boxed.warnings(np.zeros((64, 64))) == ()
    assert "no pixel in the boxes of 'cat'" in boxed.warnings(np.ones((64, 64)))[0]
