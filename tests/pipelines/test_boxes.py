"""Boxes as evidence: a class stays in its boxes; the others are as they were."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import random_clip, wrap
from densevl import Segmenter
from densevl.errors import LabelError, ProposalError
from densevl.pipelines.segmentation import boxes as own
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
    assert boxed.meta["boxes"] == {name: list(box)}
    several = segment(PHOTOS / "cat.jpg", LABELS, boxes={name: [box, (300, 200, 400, 290)]})
    assert (several.scores[number] >= boxed.scores[number] - 1e-5).all()


@pytest.mark.parametrize(
    ("boxes", "error", "said"),
    [
        ({"cats": (0, 0, 9, 9)}, LabelError, "'cats', which is none of the labels.*closest: cat"),
        ({"cat": (0, 0, 0, 9)}, ProposalError, "box"),
        ({"cat": (900, 900, 950, 990)}, ProposalError, "box"),
        ({"cat": (1, 2)}, ProposalError, "box"),
    ],
)
def test_a_box_that_cannot_be_is_one_line(clip, boxes, error, said) -> None:
    with pytest.raises(error, match=said) as caught:
        Segmenter(clip, templates="photo", protocol=SMALL)(PHOTOS / "cat.jpg", LABELS, boxes=boxes)
    assert "\n" not in str(caught.value)
