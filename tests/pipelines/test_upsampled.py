"""Trained upsamplers in a `Segmenter`: once a photo, for any recipe, and refused where they do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import oracle_upsampling as oracle
from conftest import close
from densevl import FewShot, Segmenter
from densevl.errors import DensevlError, OptionError, RecipeError
from densevl.inference.windows import AxisWindows
from densevl.pipelines.segmentation.upsampling import MOST_PIXELS, _limited, _whole
from densevl.recipes import get
from densevl.refine.upsampling import load_upsampler

LABELS = ["cat", "dog", "sky"]
SMALL = {"short_side": 40, "crop": 32, "stride": 16, "logit_scale": 40.0}
WIDTHS = {"anyup": 5, "jbu": 24, "jafar": 24}


def file_of(kind: str, tmp_path, width: int | None = None):
    shapes = oracle.random_state(kind, features=width or WIDTHS[kind])
    save_file({name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}, tmp_path / f"{kind}.safetensors")
    return tmp_path / f"{kind}.safetensors"


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def segmenter(tiny, kind, path, recipe="maskclip", **more) -> Segmenter:
    return Segmenter(
        tiny, recipe, templates="photo", protocol=SMALL, refine=kind, upsampler=path, use_cache=False, **more
    )


@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize("recipe", ["maskclip", "naclip"])
def test_few_words_and_many_are_mixed_alike(kind, recipe, tiny, rgb, tmp_path) -> None:
    """Fewer words than features are mixed as scores, more as features: the same numbers."""
    segment = segmenter(tiny, kind, file_of(kind, tmp_path), recipe)
    policy = segment.policy("none")
    words = [f"thing {number}" for number in range(30)]  # features are 24 wide
    many = segment.look(rgb, segment_labels(words), policy, None)
    few = segment.look(rgb, segment_labels(words[:4]), policy, None)
    assert many.scores.shape == (1, 40, 56, 30)
    assert few.scores.shape == (1, 40, 56, 4)
    close(few.scores, many.scores[..., :4])


def segment_labels(words):
    from densevl.vocabulary import LabelSet

    return LabelSet.parse(words)


def test_one_window_is_the_upsampler_itself(tiny, rgb, tmp_path) -> None:
    """T (A F) / A |F| with the features of the recipe, where the photo is one window."""
    path = file_of("anyup", tmp_path)
    segment = Segmenter(
        tiny, "maskclip", templates="photo", refine="anyup", upsampler=path, use_cache=False,
        protocol={"short_side": 40, "crop": None},
    )  # fmt: skip
    labels, policy = segment_labels(LABELS), segment.policy("none")
    found = segment.look(rgb, labels, policy, None)
    text = segment.embed_text(labels, policy).vectors
    from densevl.pipelines.feeding import feed
    from densevl.refine.upsampling.base import MEAN, STD

    pixels, _ = feed(rgb, tiny, segment.protocol)
    features = tiny.encode_dense(pixels, get("maskclip")).features
    shown = pixels * torch.tensor(tiny.std).view(3, 1, 1) + torch.tensor(tiny.mean).view(3, 1, 1)
    shown = (shown - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    up = load_upsampler("anyup", path)
    mixed = up(shown, features, features, tuple(pixels.shape[-2:]))
    length = up(shown, features, features.norm(dim=1, keepdim=True), tuple(pixels.shape[-2:]))
    close(found.scores, torch.einsum("bdhw,td->bhwt", mixed / length, text))


@pytest.mark.parametrize("recipe", ["maskclip", "sclip", "corrclip", "vanilla"])
@pytest.mark.parametrize("more", [{}, {"views": "flip"}, {"presence": 0.01}], ids=["plain", "views", "presence"])
def test_any_recipe_goes_with_anyup(recipe, more, tiny, rgb, tmp_path) -> None:
    if recipe == "corrclip":
        more = {**more, "proxy": "mini-sam", "proposals": "grid"}
    result = segmenter(tiny, "anyup", file_of("anyup", tmp_path), recipe, **more)(rgb, LABELS)
    assert result.labels.shape == rgb.shape[:2]
    assert result.scores.shape == (3, *rgb.shape[:2])
    assert np.isfinite(result.scores).all()
    assert result.meta["upsampler"] == "anyup"


def test_it_goes_before_other_refinements_and_in_many(tiny, rgb, tmp_path) -> None:
    path = file_of("anyup", tmp_path)
    segment = segmenter(tiny, "anyup,pamr", path)
    one, (two,) = segment(rgb, LABELS), segment.many([rgb], LABELS)
    assert (one.labels == two.labels).all()
    assert not segment.separable
    assert segment.facts()["upsampler"]["name"] == "AnyUp"
    assert len(segment.facts()["upsampler"]["weights"]) == 64


def test_jafar_reads_the_tower_where_it_was_trained_on_it(tiny, rgb, tmp_path) -> None:
    """Published files are for the tower's own width; this tower is 32 wide, and its joint space 24."""
    result = segmenter(tiny, "jafar", file_of("jafar", tmp_path, 32))(rgb, LABELS)
    assert result.labels.shape == rgb.shape[:2]


@pytest.mark.parametrize(
    ("kind", "width", "more", "error", "match"),
    [
        ("jafar", 20, {}, RecipeError, "for features of width 20, and those of model 'tiny' have 24"),
        ("jbu", 32, {}, RecipeError, "for features of width 32"),
        ("jbu", 24, {"views": "flip"}, RecipeError, "leave views and bank"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(kind, width, more, error, match, tiny, tmp_path) -> None:
    with pytest.raises(error, match=match.replace("tiny", tiny.name)):
        segmenter(tiny, kind, file_of(kind, tmp_path, width), **more)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"refine": "anyup"}, "give its file with upsampler=FILE"),
        ({"refine": "pamr", "upsampler": "x.pth"}, "add refine='anyup'"),
        ({"upsampler": "x.pth"}, "add refine='anyup'"),
        ({"refine": "anyup", "upsampler": "none.pth"}, "does not exist"),
        ({"refine": "pamr,anyup", "upsampler": "x.pth"}, "must come first"),
        ({"refine": "anyup,jbu", "upsampler": "x.pth"}, "only once"),
        ({"refine": "anyup", "upsampler": 3}, "the file of a trained upsampler"),
    ],
)
def test_a_mistake_is_one_line(settings, match, tiny) -> None:
    with pytest.raises(DensevlError, match=match) as raised:
        Segmenter(tiny, **settings)
    assert "\n" not in str(raised.value)


def test_few_shot_refuses_it(tiny) -> None:
    with pytest.raises(RecipeError, match="use it with Segmenter"):
        FewShot(tiny, refine="anyup")


def test_a_name_of_another_loaded_upsampler_is_refused(tiny, tmp_path) -> None:
    with pytest.raises(OptionError, match="upsampler is 'jbu'"):
        segmenter(tiny, "anyup", load_upsampler("jbu", file_of("jbu", tmp_path)))


def test_large_photos_are_mixed_at_a_limit() -> None:
    assert _limited(40, 56) == (40, 56)
    height, width = _limited(3000, 4000)
    assert abs(height * width / MOST_PIXELS - 1) < 0.01
    assert abs(width / height - 4 / 3) < 0.01


def test_the_whole_grid_has_the_windows_density(tiny) -> None:
    from densevl.inference.windows import WindowGrid

    grid = _whole(WindowGrid.place(40, 56, 32, 16, 8))
    assert grid.rows == AxisWindows(40, (0,), 40, 5)
    assert grid.cols == AxisWindows(56, (0,), 56, 7)
