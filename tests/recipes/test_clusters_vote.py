"""CLIPtrase in one call: its own clusters of the whole photo vote, as in the float64 reading of its code."""

from __future__ import annotations

import numpy as np
import oracle_clip
import pytest
import torch
from PIL import Image

from conftest import PHOTOS, random_clip, wrap
from densevl import BlockSegmenter, Segmenter
from densevl.errors import OptionError
from densevl.refine import majority_vote

PHOTO = PHOTOS / "cat.jpg"


@pytest.fixture(scope="module")
def clip():
    return wrap(random_clip())


def _segmenter(clip, **more) -> Segmenter:
    side = clip.tower.image_size[0]
    whole = {"short_side": side, "crop": None, "stride": None}
    return Segmenter(clip, "cliptrase", templates="photo", background="none", protocol=whole, **more)


def test_clusters_vote_where_nothing_is_proposed(clip, monkeypatch) -> None:
    segment, plain = _segmenter(clip, refine="vote"), _segmenter(clip)
    assert (segment.refine, plain.refine) == (("vote",), ())
    seen = []

    def halves(affinity, grid, size):
        seen.append((tuple(affinity.shape), grid, size))
        ids = torch.full(size, -1)
        ids[:, : size[1] // 2] = 0
        ids[: size[0] // 2, size[1] // 2 :] = 1
        return ids  # a quarter is noise

    monkeypatch.setattr("densevl.pipelines.segmentation.scorer.segment_by_affinity", halves)
    found, before = segment(PHOTO, "cat,dog,sky"), plain(PHOTO, "cat,dog,sky")
    (count, _), (h, w), size = seen[0]
    assert (count, size) == (h * w, before.labels.shape)
    wanted = majority_vote(torch.from_numpy(before.labels).long(), halves(torch.zeros(1, 1), (1, 1), size))
    np.testing.assert_array_equal(found.labels, wanted)
    (together,) = segment.many([PHOTO], "cat,dog,sky")
    np.testing.assert_array_equal(together.labels, found.labels)


def test_on_a_square_of_the_models_size_it_is_the_papers(golden_clip) -> None:
    side = golden_clip.tower.image_size[0]
    photo = np.asarray(Image.open(PHOTO).convert("RGB").resize((side, side)))
    segment = Segmenter(golden_clip, "cliptrase", background="none", protocol={"short_side": side, "crop": None})
    rows = torch.nn.functional.normalize(torch.randn(3, golden_clip.embed_dim), dim=1)
    found = segment(photo, {f"class {at}": row for at, row in enumerate(rows)})
    pixels = golden_clip.normalize(photo).double()
    wanted = oracle_clip.cliptrase_segments(oracle_clip.Trunk(golden_clip._model.state_dict()), pixels, rows)
    assert (found.labels == wanted["prediction"].numpy()).mean() > 0.99


def test_given_segments_and_huge_pictures(clip) -> None:
    segment = _segmenter(clip, refine="vote")
    ids = np.ones(segment(PHOTO, "cat,dog").labels.shape, int)
    assert len(np.unique(segment(PHOTO, "cat,dog", regions=ids).labels)) == 1
    with pytest.raises(OptionError, match=r"refine needs the whole picture, .* take 'none'"):
        BlockSegmenter(clip, "cliptrase", protocol={"crop": 32}, refine="vote")
    BlockSegmenter(clip, "cliptrase", protocol={"crop": 32}, refine="none")


def test_it_votes_by_itself_on_no_coarser_grid_than_the_papers(clip, golden_clip) -> None:
    assert [Segmenter(model, "cliptrase").refine for model in (clip, golden_clip, "mini")] == [(), ("vote",), ()]


def test_a_vote_that_wipes_out_a_label_says_so(monkeypatch) -> None:
    monkeypatch.setattr(
        "densevl.pipelines.segmentation.scorer.segment_by_affinity", lambda _, grid, size: torch.zeros(size).long()
    )
    scene, labels = PHOTOS.parent / "scenes" / "wood.png", "penguin,pizza"
    told = Segmenter("mini", "cliptrase", refine="vote")(scene, labels).warnings
    assert any("'penguin'" in text and "--refine none" in text for text in told)
    plain = Segmenter("mini", "cliptrase")(scene, labels)
    assert plain.fractions()["penguin"] > 0.01
    assert not any("vote" in text for text in plain.warnings)
