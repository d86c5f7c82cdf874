"""Clicks and boxes to masks, and masks to their connected parts."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import PHOTOS
from densevl.errors import ProposalError
from densevl.pipelines.regions.prompting import prompted
from densevl.proposals import Proposals, Proposer
from densevl.proposals.pieces import PieceProposer
from densevl.proposals.simple import GridProposer

SCENE = PHOTOS.parent / "scenes" / "water.png"
RGB = np.zeros((20, 30, 3), np.uint8)


class FakeSam(Proposer):
    """A SAM whose mask is two squares, wherever it is asked."""

    name = "fake"
    encoded = 0

    def __call__(self, image) -> Proposals:
        return Proposals.from_masks([self.mask(), self.mask(), self.mask() & False], quality=[0.9, 0.8, 0.7])

    @staticmethod
    def mask() -> np.ndarray:
        mask = np.zeros(RGB.shape[:2], bool)
        mask[2:8, 2:8] = mask[10:19, 15:25] = True
        mask[0, 29] = True
        return mask

    def encode(self, image):
        self.encoded += 1
        return image

    def prompt(self, image, *, points=None, boxes=None) -> Proposals:
        prompts = points if points is not None else boxes
        return Proposals.from_masks([self.mask()] * len(prompts), quality=[0.5] * len(prompts))


def test_a_click_keeps_the_part_it_hit_and_a_box_what_is_in_it() -> None:
    sam = FakeSam()
    found = prompted(RGB, points=[(4, 5), (28.9, 1.5)], boxes=[(0, 0, 5.0, 20)], proposer=sam)
    assert sam.encoded == 1
    assert found.boxes.tolist() == [[2, 2, 8, 8], [2, 0, 30, 19], [2, 2, 5, 8]]
    assert found.areas[1] == FakeSam.mask().sum(), "a click beside the mask keeps all of it"
    assert found.quality.tolist() == [0.5] * 3
    plain = prompted(RGB, points=[(4, 5)], boxes=[(0, 0, 5, 20)], proposer=sam, near=False)
    assert plain.areas.tolist() == [FakeSam.mask().sum()] * 2


def test_clicks_on_the_border_are_in_the_picture() -> None:
    assert len(prompted(RGB, points=[(30, 20), (0, 0)], proposer=FakeSam())) == 2


def test_without_a_sam_boxes_are_rectangles_and_clicks_refused() -> None:
    found = prompted(RGB, boxes=[(2, 3, 9, 9), (-5, -5, 100, 4.2)], proposer=GridProposer())
    assert found.boxes.tolist() == [[2, 3, 9, 9], [0, 0, 30, pytest.approx(4.2)]]
    assert len(prompted(RGB, proposer=FakeSam())) == 0
    with pytest.raises(ProposalError, match="points need a SAM"):
        prompted(RGB, points=[(1, 1)], proposer=GridProposer())


def test_a_click_on_the_elephant_is_an_elephant() -> None:
    pytest.importorskip("segment_anything")
    from densevl.pipelines.regions.classifier import RegionClassifier

    found = prompted(SCENE, points=[(116, 108)], boxes=[(12, 130, 60, 182)])
    result = RegionClassifier("mini", proposals=None)(SCENE, ["elephant", "fish", "house"], regions=found)
    assert result.found == ("elephant", "house")
    assert found.mask(0)[108, 116]


def test_pieces_are_connected_large_enough_and_once() -> None:
    pieces = PieceProposer(FakeSam())
    found = pieces(RGB)
    assert sorted(found.areas.tolist()) == [36, 90], "the speck is too small, the second mask a repetition"
    assert found.quality.tolist() == pytest.approx([0.9, 0.9])
    assert pieces.name == "pieces of fake"
    assert len(PieceProposer(FakeSam(), min_share=0, duplicate_iou=1)(RGB)) == 6
    assert len(PieceProposer(FakeSam(), min_share=0.5)(RGB)) == 0
    assert len(prompted(RGB, points=[(4, 5)], proposer=pieces)) == 1, "prompts reach the SAM"
    assert not hasattr(PieceProposer(GridProposer()), "prompt")
    with pytest.raises(ProposalError, match="are shares"):
        PieceProposer(FakeSam(), min_share=1)
