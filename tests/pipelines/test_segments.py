"""Segments as users give them: maps, masks that overlap, and what is refused; votes inside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import PHOTOS, random_clip, wrap
from densevl import Segmenter
from densevl.backbones import InferenceProtocol
from densevl.errors import ModelError, ProposalError, RecipeError
from densevl.inference import LabelMap
from densevl.pipelines.segmentation import refinement
from densevl.pipelines.segmentation.segments import Segments, proposer

SMALL = InferenceProtocol(short_side=48, crop=32, stride=16)
LABELS = ["cat", "dog | puppy", "sky"]
SIZE = (300, 451)


def boxes(*corners: tuple[int, int, int, int], size=(6, 8)) -> np.ndarray:
    masks = np.zeros((len(corners), *size), bool)
    for mask, (top, left, bottom, right) in zip(masks, corners, strict=True):
        mask[top:bottom, left:right] = True
    return masks


@pytest.fixture(scope="module")
def clip():
    return wrap(random_clip())


def test_the_smaller_mask_has_the_pixel_and_0_is_no_segment() -> None:
    masks = boxes((0, 0, 2, 2), (0, 0, 5, 8), (1, 1, 3, 3))
    ids = Segments.parse(masks, (6, 8)).ids
    assert ids[0, 0] == 1
    assert ids[1, 1] == 1  # of equals the first
    assert ids[2, 2] == 3
    assert ids[4, 7] == 2
    assert ids[5, 0] == 0


@pytest.mark.parametrize("wrap_up", [np.asarray, torch.from_numpy, list], ids=["array", "tensor", "list"])
def test_masks_come_in_any_form(wrap_up) -> None:
    masks = boxes((0, 0, 2, 2), (3, 3, 5, 8))
    assert torch.equal(Segments.parse(wrap_up(masks), (6, 8)).ids, Segments.parse(masks, (6, 8)).ids)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_maps_keep_their_ids_and_negative_ones_are_none(dtype) -> None:
    given = np.arange(48).reshape(6, 8).astype(dtype)
    if np.issubdtype(dtype, np.signedinteger):
        given[0] = -1
    segments = Segments.parse(given, (6, 8))
    assert torch.equal(segments.ids, torch.from_numpy(np.maximum(given, 0).astype(np.int64)))
    assert len(segments) == len(np.unique(np.maximum(given, 0))) - 1


def test_a_map_becomes_one_mask_a_segment_at_another_size() -> None:
    given = np.zeros((6, 8), int)
    given[:, 2:4], given[:3, 4:] = 7, 40_000
    masks = Segments.parse(given, (6, 8)).at((12, 16), as_masks=True)
    assert masks.shape == (1, 2, 12, 16)
    assert torch.equal(masks[0, 0], torch.from_numpy(given == 7).repeat_interleave(2, 0).repeat_interleave(2, 1))
    small = Segments.parse(given == 7 * np.ones((1, 1, 1)), (6, 8)).at((3, 4), as_masks=True)
    assert torch.equal(small[0, 0], torch.from_numpy(given == 7)[1::2, 1::2])


@pytest.mark.parametrize(
    "given",
    [np.full((6, 8), 0.5), np.zeros((8, 6), int), np.full((2, 6, 8), 3), np.zeros((0, 6, 8), bool), [], None],
    ids=["floats", "turned", "masks of integers", "no masks", "empty list", "none"],
)
def test_other_things_are_refused_in_one_line(given) -> None:
    with pytest.raises(ProposalError, match=r"map|masks") as caught:
        Segments.parse(given, (6, 8))
    assert "\n" not in str(caught.value)


def test_a_vote_fills_segments_and_says_how_sure_it_was() -> None:
    labels = torch.tensor([[0, 0, 1, -1], [0, 1, 1, -1]], dtype=torch.int16)
    ids = np.array([[1, 1, 2, 0], [1, 1, 2, 0]])
    voted = refinement.vote(LabelMap(labels[None], torch.full((1, 2, 4), 0.9)), Segments.parse(ids, (2, 4)))
    assert voted.labels[0].tolist() == [[0, 0, 1, -1], [0, 0, 1, -1]]
    assert voted.labels.dtype == torch.int16
    want = torch.full((2, 4), 0.9)
    want[1, 1] = 0.75
    torch.testing.assert_close(voted.confidence[0], want)


@pytest.mark.parametrize("regions", ["map", "masks"])
@pytest.mark.parametrize("recipe", ["corrclip", "textregion", "sclip"])
def test_segments_reach_recipes_and_votes(clip, recipe, regions) -> None:
    from pipelines.test_borrowing import Colours

    options = {"proxy": Colours()} if recipe == "corrclip" else {}
    y, x = np.indices(SIZE)
    ids = 1 + (y // 100) * 5 + x // 100
    given = ids if regions == "map" else np.stack([ids == name for name in np.unique(ids)])
    segment = Segmenter(clip, recipe, templates="photo", protocol=SMALL, refine="vote", **options)
    result = segment(PHOTOS / "cat.jpg", LABELS, regions=given)
    assert result.meta["regions"] == 15
    assert recipe == "corrclip" or len(np.unique(result.labels)) > 1
    for name in np.unique(ids):
        assert len(np.unique(result.labels[ids == name])) == 1
    other = segment(PHOTOS / "cat.jpg", LABELS, regions=np.ones(SIZE, int))
    assert len(np.unique(other.labels)) == 1
    if recipe != "sclip":
        assert np.abs(other.scores - result.scores).max() > 1e-4


@pytest.mark.parametrize("name", ["pamr", "lposs+"])
def test_score_refinements_change_labels_and_scores_alike(clip, name) -> None:
    plain = Segmenter(clip, templates="photo", protocol=SMALL)(PHOTOS / "cat.jpg", LABELS)
    refined = Segmenter(clip, templates="photo", protocol=SMALL, refine=name)(PHOTOS / "cat.jpg", LABELS)
    assert (refined.labels == refined.scores.argmax(0)).mean() > 0.999
    assert (refined.labels != plain.labels).any()
    assert abs(refined.confidence.mean() - plain.confidence.mean()) < 0.2  # scores kept their range
    assert refined.meta["refine"] == name


def test_refinements_are_applied_in_order(clip) -> None:
    half = np.ones(SIZE, int)
    half[:, 200:] = 2
    both = Segmenter(clip, templates="photo", protocol=SMALL, refine="pamr,vote")
    pamr = Segmenter(clip, templates="photo", protocol=SMALL, refine="pamr")(PHOTOS / "cat.jpg", LABELS)
    result = both(PHOTOS / "cat.jpg", LABELS, regions=half)
    for part in (half == 1, half == 2):
        assert result.labels[part].tolist() == [np.bincount(pamr.labels[part]).argmax()] * part.sum()
    np.testing.assert_allclose(result.scores, pamr.scores)


def test_segments_change_labels_and_scores_alike(clip) -> None:
    y, x = np.indices(SIZE)
    ids = 1 + (y // 30) * 100 + x // 30
    ids[:30] = 0
    plain = Segmenter(clip, templates="photo", protocol=SMALL)(PHOTOS / "cat.jpg", LABELS)
    mixed = Segmenter(clip, templates="photo", protocol=SMALL, refine="segments")(
        PHOTOS / "cat.jpg", LABELS, regions=ids
    )
    assert (mixed.labels == mixed.scores.argmax(0)).mean() > 0.999
    np.testing.assert_allclose(mixed.scores[:, :30], plain.scores[:, :30], atol=1e-5)
    inside = ids == ids[40, 40]
    for own, before in zip(mixed.scores, plain.scores, strict=True):
        np.testing.assert_allclose(own[inside].mean(), before[inside].mean(), atol=1e-5)
        assert own[inside].std() < 0.41 * before[inside].std()
    assert mixed.meta["refine"] == "segments"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("crf", "no refinement 'crf'.*known: .*pamr, edges, lposs\\+, .*segments, vote"),
        ("pamr,pmr", "closest: pamr"),
        ("pamr,pamr", "twice"),
        ("vote,pamr", "must come last"),
        ("", "no refinement ''"),
    ],
)
def test_mistaken_refinements_are_one_line(spec, reason) -> None:
    with pytest.raises(RecipeError, match=reason) as caught:
        refinement.parse(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "refine", "who"),
    [
        ("textregion", None, "recipe 'textregion'"),
        ("sclip", "vote", "refine 'vote'"),
        ("sclip", "segments", "refine 'segments'"),
    ],
)
def test_missing_segments_are_asked_for(clip, recipe, refine, who) -> None:
    segment = Segmenter(clip, recipe, protocol=SMALL, refine=refine)
    with pytest.raises(RecipeError, match=rf"{who} needs segments.*regions=.*--proposals"):
        segment(PHOTOS / "cat.jpg", LABELS)


def test_a_function_proposes_segments_of_every_photo(clip) -> None:
    seen = []

    def propose(rgb):
        seen.append((rgb.shape, rgb.dtype))
        return np.ones(rgb.shape[:2], int)

    segment = Segmenter(clip, templates="photo", protocol=SMALL, refine="vote", proposals=propose)
    assert len(np.unique(segment(PHOTOS / "cat.jpg", LABELS).labels)) == 1
    assert seen == [((*SIZE, 3), np.uint8)]
    segment(PHOTOS / "cat.jpg", LABELS, regions=np.ones(SIZE, int))
    assert len(seen) == 1  # what is given goes before what is proposed


def test_mini_sam_proposes_and_another_name_is_refused() -> None:
    pytest.importorskip("segment_anything")
    rgb = np.zeros((60, 90, 3), np.uint8)
    rgb[20:40, 30:60] = (250, 40, 40)
    ids = proposer("mini-sam")(rgb)
    assert ids.shape == (60, 90)
    assert ids[30, 45] > 0
    with pytest.raises(ModelError, match=r"no proposer 'slic'.*mini-sam"):
        proposer("slic")
