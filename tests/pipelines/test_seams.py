"""The seams that pages, servers, huge pictures and exports stand on: steps, chances at a place, blocks of a plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import PHOTOS, random_clip, wrap
from densevl import Segmenter
from densevl.errors import DensevlError, RecipeError
from densevl.inference import WindowGrid
from densevl.kernels import DecodePlan, dense_decode
from densevl.vocabulary import LabelSet

SMALL = {"short_side": 48, "crop": 32, "stride": 16}
LABELS = ["cat", "dog | puppy", "sky"]
PICTURES = [PHOTOS / "cat.jpg", PHOTOS / "coffee.jpg"]


@pytest.fixture(scope="module")
def clip():
    return wrap(random_clip())


@pytest.mark.parametrize(
    "recipe", ["vanilla", "sclip", "naclip", "sc_clip", "cliper", "clip_feature_surgery", "clip_prs"]
)
def test_windows_of_several_photos_may_share_a_pass(clip, recipe) -> None:
    segment = Segmenter(clip, recipe, templates="photo", protocol=SMALL)
    labels, policy = LabelSet.parse(LABELS), segment.policy()
    photos = [segment.prepare(path) for path in PICTURES]
    dense, start = segment.run(torch.cat([photo.parts for photo in photos])), 0
    for photo in photos:
        own = dense.part(slice(start, start + len(photo.parts)))
        start += len(photo.parts)
        evidence = segment.gather(photo, own, labels, policy)
        want = segment.look(photo.rgb, labels, policy, None)
        torch.testing.assert_close(evidence.scores, want.scores, atol=2e-5, rtol=0)
        assert evidence.windows == want.windows


@pytest.mark.parametrize(
    "settings",
    [{"recipe": "resclip"}, {"recipe": "proxyclip", "proxy": "mini-sam"}, {"recipe": "sclip", "views": "flip"}],
    ids=["reads the words", "reads a proxy", "views"],
)
def test_what_belongs_to_its_photo_is_not_mixed(clip, settings) -> None:
    segment = Segmenter(clip, templates="photo", protocol=SMALL, **settings)
    assert not segment.separable
    with pytest.raises(RecipeError, match="cannot share a pass"):
        segment.prepare(PICTURES[0])


@pytest.mark.parametrize("background", ["none", "sky, wall", 0.4, "1-max"])
@pytest.mark.parametrize("refine", [None, "pamr"])
def test_chances_at_a_place_are_those_of_the_confidence(clip, background, refine) -> None:
    names = ["cat", "dog | puppy | hound", "cup"]
    segment = Segmenter(clip, "sclip", templates="photo", protocol=SMALL, background=background, refine=refine)
    result = segment(PHOTOS / "cat.jpg", names)
    for y, x in [(0, 0), (150, 200), (299, 450)]:
        best = result.at(y, x, k=4)
        assert [chance for _, chance in best] == sorted((chance for _, chance in best), reverse=True)
        assert best[0][1] == pytest.approx(float(result.confidence[y, x]), abs=2e-5)
        label = int(result.labels[y, x])
        if isinstance(background, str):  # no threshold decides instead
            assert best[0][0] == ("nothing" if label < 0 else result.names[label])
    with pytest.raises(DensevlError, match="outside the photo"):
        result.at(300, 0)


def test_a_coarse_map_of_the_likeliest_classes(clip) -> None:
    result = Segmenter(clip, "sclip", templates="photo", protocol=SMALL)(PHOTOS / "cat.jpg", LABELS)
    classes, shares = result.top(2, (6, 9))
    assert classes.shape == shares.shape == (2, 6, 9)
    for row, column in [(0, 0), (3, 4), (5, 8)]:
        y, x = int((row + 0.5) * 300 / 6), int((column + 0.5) * 451 / 9)
        assert [result.names[c] for c in classes[:, row, column]] == [name for name, _ in result.at(y, x, 2)]
    assert result.top(1)[0].shape == (1, 32, 48)


def test_a_result_without_its_model_says_so(clip, tmp_path) -> None:
    import pickle

    result = Segmenter(clip, "sclip", templates="photo", protocol=SMALL)(PHOTOS / "cat.jpg", LABELS)
    with pytest.raises(DensevlError, match="not kept in files"):
        pickle.loads(pickle.dumps(result)).at(0, 0)


@given(
    size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    out=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    crop=st.none() | st.integers(8, 40),
    overlap=st.none() | st.floats(0, 0.8),
    blend=st.sampled_from(["pixel", "patch"]),
    cut=st.floats(0, 1),
)
@settings(deadline=None, max_examples=80)
def test_a_block_of_output_is_that_of_the_whole_bit_for_bit(size, out, crop, overlap, blend, cut) -> None:
    stride = None if crop is None or overlap is None else max(1, round(crop * (1 - overlap)))
    windows = WindowGrid.place(*size, crop, stride, 4, blend)
    plan = windows.plan(*out)
    shape = plan.rows.matrix.shape[1], plan.cols.matrix.shape[1]
    scores = torch.randn(1, *shape, 5, generator=torch.Generator().manual_seed(0))
    label, score, lse = dense_decode(scores, plan, 20.0)
    start = int(cut * (out[0] - 1))
    for first, last in ((0, start), (start, out[0])):
        if first == last:
            continue
        touched, rows = windows.block(True, out[0], first, last)
        tokens = windows.rows.tokens
        columns = torch.cat([torch.arange(w * tokens, (w + 1) * tokens) for w in touched])
        assert torch.equal(rows.matrix, plan.rows.matrix[first:last][:, columns])
        own = dense_decode(scores[:, columns], DecodePlan(rows, plan.cols), 20.0)
        torch.testing.assert_close(own[1], score[:, first:last], atol=1e-6, rtol=0)
        same = (own[0] == label[:, first:last]) | (own[1] - score[:, first:last]).abs().gt(0)
        assert same.all()
        torch.testing.assert_close(own[2], lse[:, first:last], atol=1e-4, rtol=0)
    assert np.prod(out) == label.numel()
