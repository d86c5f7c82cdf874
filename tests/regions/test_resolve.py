"""Label maps, instances and panoptic maps from named masks, on scenes small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import close
from densevl.errors import OptionError
from densevl.proposals.base import Proposals
from densevl.regions import resolve

SIZE = (6, 10)


def nested() -> tuple[Proposals, np.ndarray]:
    """A large mask, two smaller ones nested in it, and one apart; the right-hand column is free."""
    masks = np.zeros((4, *SIZE), bool)
    masks[0, :, :6] = True
    masks[1, 1:5, 1:5] = True
    masks[2, 2:4, 2:4] = True
    masks[3, :, 6:9] = True
    probs = np.array([[0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.1, 0.55, 0.35], [0.2, 0.2, 0.6]])
    return Proposals.from_masks(masks), probs


def plain(masks: np.ndarray, probs: np.ndarray, mode: str) -> np.ndarray:
    over = masks[:, None] * probs[:, :, None, None]
    return (
        over.max(axis=0)
        if mode == "max"
        else over.sum(axis=0) / (np.maximum(masks.sum(axis=0), 1) if mode == "mean" else 1)
    )


@pytest.mark.parametrize("budget", [1, 2**23], ids=["a few pixels at a time", "at once"])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_semantic_is_the_formula(mode, budget, monkeypatch) -> None:
    monkeypatch.setattr(resolve, "AT_ONCE", budget)
    masks, probs = nested()
    labels, confidence = resolve.semantic(masks, probs, mode=mode)
    scores = plain(masks.masks(), probs, mode)
    covered = masks.masks().any(axis=0)
    assert (labels == np.where(covered, scores.argmax(axis=0), -1)).all()
    close(confidence, np.where(covered, scores.max(axis=0).clip(max=1), 0))
    assert labels.dtype == np.int16
    assert confidence.dtype == np.float32


def test_paint_lets_the_small_mask_have_the_pixel() -> None:
    masks, probs = nested()
    probs[2] = [0.9, 0.05, 0.05]
    labels, confidence = resolve.semantic(masks, probs, mode="paint")
    assert labels[0, 0] == 0
    assert labels[1, 1] == 1
    assert labels[2, 2] == 0, "the innermost"
    assert confidence[2, 2] == pytest.approx(0.9)
    assert (labels[:, 9] == -1).all()


@pytest.mark.parametrize("mode", resolve.SEMANTIC)
def test_nothing_competes_and_a_threshold_rejects(mode) -> None:
    masks, probs = nested()
    few = masks.select([3])
    assert (resolve.semantic(few, probs[3:], mode=mode, nothing=[0.7])[0] == -1).all()
    assert (resolve.semantic(few, probs[3:], mode=mode, nothing=[0.5])[0][:, 6:9] == 2).all()
    assert (resolve.semantic(few, probs[3:], mode=mode, threshold=0.61)[0] == -1).all()
    labels, confidence = resolve.semantic(Proposals.empty(SIZE), np.zeros((0, 3)), mode=mode)
    assert (labels == -1).all()
    assert (confidence == 0).all()


def test_holes_are_filled_from_the_dense_map() -> None:
    masks, probs = nested()
    labels, _ = resolve.semantic(masks, probs, nothing=[0, 0, 0, 1])
    filled = resolve.fill_holes(labels, masks, np.full(SIZE, 1, np.int16))
    assert (filled[:, 9] == 1).all()
    assert (filled[:, 6:9] == -1).all(), "a region that is nothing is no hole"


def test_instances_are_best_first_and_do_not_repeat() -> None:
    masks, probs = nested()
    twice = Proposals.from_masks(np.concatenate([masks.masks(), masks.masks()[:1], np.zeros((1, *SIZE), bool)]))
    probs = np.concatenate([probs, [[0.65, 0.2, 0.15], [1, 0, 0]]])
    found = resolve.instances(twice, probs)
    assert found.index.tolist() == [1, 4, 3, 2]
    assert found.labels.tolist() == [1, 0, 2, 1]
    np.testing.assert_allclose(found.scores, [0.7, 0.65, 0.6, 0.55])
    assert resolve.instances(twice, probs, parts=0.9).index.tolist() == [1, 4, 3], "a part of mask 1 of the same name"
    assert resolve.instances(twice, probs, top=1).index.tolist() == [1]
    assert resolve.instances(twice, probs, threshold=0.66).index.tolist() == [1]
    assert resolve.instances(twice, probs, nothing=[0, 0.9, 0, 0, 0, 0]).index.tolist() == [4, 3, 2]
    assert resolve.instances(twice, probs, quality=[1, 0.1, 1, 1, 1, 1]).index.tolist() == [4, 3, 2, 1]


def test_one_mask_may_have_several_labels() -> None:
    masks, probs = nested()
    found = resolve.instances(masks, probs, many=True, threshold=0.3)
    pairs = list(zip(found.index.tolist(), found.labels.tolist(), strict=True))
    assert pairs == [(1, 1), (0, 0), (3, 2), (2, 1), (2, 2), (0, 1)]


def test_panoptic_gives_every_pixel_to_one_segment() -> None:
    masks, probs = nested()
    found = resolve.panoptic(masks, probs)
    assert found.ids.dtype == np.int32
    assert [(s["label"], s["area"], s["regions"]) for s in found.segments] == [(1, 16, [1]), (2, 18, [3])]
    assert (found.ids[:, 9] == 0).all()
    assert (found.ids[0] == [0] * 6 + [2] * 3 + [0]).all(), "of mask 0 less than 0.8 is visible"
    some = resolve.panoptic(masks, probs, visible=0.5)
    assert [s["regions"] for s in some.segments] == [[1], [3], [0]]
    for segment in some.segments:
        assert (some.ids == segment["id"]).sum() == segment["area"]


def test_stuff_of_one_class_is_one_segment() -> None:
    masks = np.zeros((2, *SIZE), bool)
    masks[0, :, :3], masks[1, :, 7:] = True, True
    given, probs = Proposals.from_masks(masks), np.array([[0.9, 0.1], [0.8, 0.2]])
    assert len(resolve.panoptic(given, probs).segments) == 2
    joined = resolve.panoptic(given, probs, stuff={0})
    assert [(s["area"], s["regions"]) for s in joined.segments] == [(36, [0, 1])]


def test_what_does_not_fit_is_refused() -> None:
    masks, probs = nested()
    with pytest.raises(OptionError, match=r"\(3, 3\) for 4 masks"):
        resolve.semantic(masks, probs[:3])
    with pytest.raises(OptionError, match="closest: paint"):
        resolve.semantic(masks, probs, mode="pain")
