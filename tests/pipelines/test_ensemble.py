"""Ensembles of views and of models: one that stands alone changes nothing, weights mix logits, grids may differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import PHOTOS, close, random_clip, wrap
from densevl import Segmenter
from densevl.backbones import InferenceProtocol
from densevl.errors import DensevlError, OptionError, ProtocolError
from densevl.images import find_images
from densevl.inference.views import Views
from densevl.pipelines.folder.loop import to_files
from densevl.pipelines.folder.tasks import segmenting
from densevl.pipelines.segmentation.ensemble import Ensemble
from densevl.vocabulary import TextOptions

SMALL = InferenceProtocol(short_side=48, crop=32, stride=16)
LABELS = ["cat", "dog | puppy", "sky"]
CAT = PHOTOS / "cat.jpg"


@pytest.fixture(scope="module")
def first():
    return Segmenter(wrap(random_clip(), "one"), templates="photo", protocol=SMALL)


@pytest.fixture(scope="module")
def second():
    protocol = InferenceProtocol(short_side=64, crop=None, logit_scale=20.0)
    return Segmenter(wrap(random_clip(1), "two"), "maskclip", templates="photo", protocol=protocol)


@pytest.mark.parametrize("weights", [(1, 0), (0.3, 0.0), (0, 2)])
@pytest.mark.parametrize("background", ["none", "wall,0.2"])
def test_a_model_that_stands_alone_keeps_its_labels_and_confidence(first, second, weights, background) -> None:
    alone = first if weights[0] else second
    want = alone(CAT, LABELS, background=background)
    got = Ensemble([(first, weights[0]), (second, weights[1])])(CAT, LABELS, background=background)
    assert (got.labels == want.labels).all()
    close(got.confidence, want.confidence)
    close(got.scores, want.scores)
    assert got.meta["model"] == want.meta["model"]


def test_the_same_model_twice_is_that_model(first) -> None:
    want, got = first(CAT, LABELS), Ensemble([(first, 1), (first, 3)])(CAT, LABELS)
    # read at its own tokens, a grid of overlapping windows gives the windows' average there: nearly the same
    assert (got.labels == want.labels).mean() > 0.97


def test_logits_are_mixed_in_the_leaders_scale(first) -> None:
    """Without overlaps reading a grid at its own tokens changes nothing, so the mix can be computed by hand."""
    whole = InferenceProtocol(short_side=48, crop=None)
    one = Segmenter(first.backbone, templates="photo", protocol=whole)
    warm = InferenceProtocol(48, crop=None, logit_scale=10.0)
    other = Segmenter(wrap(random_clip(1)), templates="photo", protocol=warm)
    got = Ensemble([(one, 1), (other, 3)])(CAT, LABELS)
    want = 0.25 * one(CAT, LABELS).scores + 0.75 * 10 / 40 * other(CAT, LABELS).scores
    assert (got.labels == got.scores.argmax(0)).mean() > 0.999
    # the best of two words is taken after mixing
    close(got.scores[[0, 2]], want[[0, 2]])


def test_models_of_other_grids_and_recipes_are_mixed(first, second) -> None:
    both = Ensemble([(first, 1), (second, 1)])(CAT, LABELS)
    apart = [segment(CAT, LABELS) for segment in (first, second)]
    assert all((both.labels != one.labels).any() for one in apart)
    by_hand = (40 * apart[0].scores + 20 * apart[1].scores).argmax(0)  # but for its best words and its grid
    assert (both.labels == by_hand).mean() > 0.8
    assert [row["weight"] for row in both.meta["ensemble"]] == [0.5, 0.5]
    assert [row["model"] for row in both.meta["ensemble"]] == ["one", "two"]


def test_an_ensemble_does_folders_as_a_segmenter_does(first, second, tmp_path) -> None:
    both = Ensemble([(first, 1), (second, 1)])
    report = to_files(segmenting(both, LABELS), find_images(CAT), tmp_path / "out")
    assert not report.errors
    assert (tmp_path / "out" / "cat.png").is_file()


def test_image_priors_of_the_text_are_mixed_too(first, second) -> None:
    options = TextOptions(parents="image")
    nested = {"animal": ["cat", "dog"], "sky": []}
    with_prior = Segmenter(first.backbone, templates="photo", protocol=SMALL, text=options)
    want = with_prior(CAT, nested)
    got = Ensemble([(with_prior, 1), (second, 0)])(CAT, nested)
    close(got.scores, want.scores)
    mixed = Ensemble([(with_prior, 1), (second, 1)])(CAT, nested)
    plain = Ensemble([(first, 1), (second, 1)])(CAT, nested)
    prior = (want.scores - first(CAT, nested).scores).mean((1, 2))
    close((mixed.scores - plain.scores).mean((1, 2)), prior / 2)


@pytest.mark.parametrize(
    ("members", "error"),
    [([], OptionError), ([0], OptionError), ([-1, 2], OptionError), ([float("nan")], OptionError)],
    ids=["none", "zero", "negative", "nan"],
)
def test_mistaken_weights_are_one_line(first, members, error) -> None:
    with pytest.raises(error, match="at least 0") as caught:
        Ensemble([(first, weight) for weight in members])
    assert "\n" not in str(caught.value)


def test_a_background_that_only_some_models_know_is_refused(first, second, monkeypatch) -> None:
    monkeypatch.setattr(second.backbone, "unknown", lambda text: torch.zeros(text.shape[1]))
    with pytest.raises(OptionError, match=r"one, two do not share a background.*background='none'"):
        Ensemble([(first, 1), (second, 1)])(CAT, LABELS, background="unknown")
    assert Ensemble([(first, 1), (second, 1)], background="none")(CAT, LABELS).labels.min() >= 0


@pytest.mark.parametrize("recipe", ["sclip", "resclip", "clip_feature_surgery"])
@pytest.mark.parametrize(
    ("views", "count"),
    [("flip", 2), ("flip+scale", 6), ("itaclip", 5), (Views(("v",), grey=True), 3), (Views(()), 1)],
    ids=["flip", "flip+scale", "itaclip", "own", "the image alone"],
)
def test_views_reach_labels_and_scores_alike(first, recipe, views, count) -> None:
    plain = Segmenter(first.backbone, recipe, templates="photo", protocol=SMALL)(CAT, LABELS)
    segment = Segmenter(first.backbone, recipe, templates="photo", protocol=SMALL, views=views)
    result = segment(CAT, LABELS)
    assert len(segment.views) == count
    assert (result.labels == result.scores.argmax(0)).mean() > 0.999
    assert ((result.labels == plain.labels).all() and np.allclose(result.scores, plain.scores)) == (count == 1)
    assert result.meta["views"]["flips"] == segment.views.flips


@pytest.mark.parametrize("size", [(1, 1), (3, 90), (48, 48)])
@pytest.mark.parametrize(
    "protocol", [SMALL, InferenceProtocol(48, crop=None), InferenceProtocol(None, crop=32, stride=16, blend="patch")]
)
def test_views_of_any_size_of_image(first, size, protocol) -> None:
    segment = Segmenter(
        first.backbone, templates="photo", protocol=protocol, views=Views(("h", "v"), (1.0, 0.5), True, True)
    )
    rgb = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    assert segment(rgb, LABELS).labels.shape == size


def test_mistaken_views_fail_before_the_model_loads() -> None:
    with pytest.raises(ProtocolError, match=r"no views 'flop'.*closest: flip") as caught:
        Segmenter("nonsense", views="flop")
    assert isinstance(caught.value, DensevlError)


@pytest.mark.parametrize("members", [3, None, ["mini"], [("mini", 1.0)], [(None, 1)], {"a": 1}])
def test_what_is_no_list_of_segmenters_is_one_line(members) -> None:
    with pytest.raises(OptionError, match="pairs of a Segmenter"):
        Ensemble(members)
