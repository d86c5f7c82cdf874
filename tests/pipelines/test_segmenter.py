"""`Segmenter` end to end on a random CLIP: what it returns, what it keeps, what it refuses."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import PHOTOS, close, random_clip, wrap
from densevl import Recipe, Segmenter
from densevl.backbones import InferenceProtocol
from densevl.backbones.reach import Reach
from densevl.errors import (
    DensevlError,
    ImageError,
    LabelError,
    MissingExtraError,
    OptionError,
    ProtocolError,
    RecipeError,
)
from densevl.images import read_image, resize
from densevl.inference import slide
from densevl.vocabulary import Background, Descriptors, LabelSet, TextOptions

SMALL = InferenceProtocol(short_side=48, crop=32, stride=16)
LABELS = ["cat", "dog | puppy", "sky"]


@pytest.fixture(scope="module")
def segment():
    return Segmenter(wrap(random_clip()), templates="photo", protocol=SMALL)


def test_labels_are_the_argmax_of_the_papers_protocol(segment) -> None:
    result = segment(PHOTOS / "cat.jpg", LABELS)
    rgb = read_image(PHOTOS / "cat.jpg")
    assert result.labels.shape == rgb.shape[:2]
    assert result.labels.dtype == np.int16
    pixels = segment.backbone.normalize(resize(rgb, (48, 72)))[None]
    text = segment.backbone.encode_text([f"a photo of a {word}." for word in ("cat", "dog", "puppy", "sky")])
    cosines = slide(segment.backbone, pixels, text, recipe="sclip", crop=32, stride=16, size=rgb.shape[:2])[0]
    by_class = torch.stack([cosines[0], torch.maximum(cosines[1], cosines[2]), cosines[3]])
    best = by_class.topk(2, dim=0)
    tie = (best.values[0] - best.values[1] < 1e-6).numpy()
    assert ((result.labels == best.indices[0].numpy()) | tie).all()
    close(result.scores, by_class)
    np.testing.assert_allclose(result.confidence, torch.softmax(40 * cosines, 0).amax(0), atol=2e-5)


def test_scores_are_built_only_when_asked_for(segment, monkeypatch) -> None:
    called = []
    monkeypatch.setattr(
        "densevl.pipelines.segmentation.segmenter.class_scores",
        lambda *a: called.append(a) or torch.zeros(1, 3, 300, 451),
    )
    result = segment(PHOTOS / "cat.jpg", LABELS)
    assert not called
    assert result.scores.shape == (3, 300, 451)
    assert result.scores is result.scores
    assert len(called) == 1


@pytest.mark.parametrize("kind", ["path", "str", "pil", "numpy", "torch"])
def test_every_form_of_an_image_gives_the_same(segment, kind) -> None:
    path = PHOTOS / "cat.jpg"
    rgb = read_image(path)
    given = {
        "path": path,
        "str": str(path),
        "pil": Image.open(path),
        "numpy": rgb,
        "torch": torch.from_numpy(rgb).permute(2, 0, 1),
    }[kind]
    assert (segment(given, LABELS).labels == segment(path, LABELS).labels).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (17, 33), (48, 48), (500, 31)])
@pytest.mark.parametrize("crop", [32, None])
def test_any_size_of_image(size, crop) -> None:
    segment = Segmenter(wrap(random_clip()), templates="name", protocol={"short_side": 48, "crop": crop, "stride": 16})
    result = segment(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8), LABELS)
    assert result.labels.shape == size
    assert ((result.labels >= 0) & (result.labels < 3)).all()


@pytest.mark.parametrize(
    ("background", "expect_nothing"),
    [("none", False), (0.99, True), (["wall", "floor"], None), ("unknown", False), ("voc", None), ("1-max", True)],
)
def test_background_policies(segment, background, expect_nothing) -> None:
    result = segment(PHOTOS / "cat.jpg", LABELS, background=background)
    nothing = (result.labels == -1).any()
    assert expect_nothing is None or nothing == expect_nothing
    assert result.names == ("cat", "dog", "sky")


def test_background_words_and_thresholds_come_beside_the_models_own_unknown(segment, monkeypatch) -> None:
    monkeypatch.setattr(type(segment.backbone), "background", "unknown")
    mine = Segmenter(segment.backbone, templates="photo", protocol=SMALL, background=["wall"])
    assert mine.background == Background(words=("wall",), unknown=True)
    assert Segmenter(segment.backbone, background=0.2).background == Background(threshold=0.2, unknown=True)


def test_unknown_background_words_are_named_too(segment, monkeypatch) -> None:
    _does_not_know(segment.backbone, "wall", monkeypatch)
    result = segment(PHOTOS / "cat.jpg", LABELS, background=["wall"])
    assert result.warnings == ("model 'tiny' does not know 'wall': never seen",)


def _does_not_know(backbone, unknown: str, monkeypatch) -> None:
    """Make a model say so of one word."""
    reached = {unknown: Reach(unknown, "none", "none", "never seen")}
    monkeypatch.setattr(backbone, "reach", lambda words: [reached.get(word, Reach(word)) for word in words])


def _variant(segment, **options) -> Segmenter:
    return Segmenter(segment.backbone, templates="simple", protocol=SMALL, **options)


def test_a_negative_takes_pixels_from_its_class_and_gives_them_to_nothing(segment) -> None:
    free = segment(PHOTOS / "cat.jpg", ["cat", "dog", "toy"])
    got = segment(PHOTOS / "cat.jpg", ["cat | not: toy", "dog"])
    assert got.names == ("cat", "dog")
    assert (got.labels == np.where(free.labels == 2, -1, free.labels)).all()
    close(got.confidence, free.confidence)


def test_absent_labels_are_dropped_named_and_keep_their_scores(segment) -> None:
    plain = _variant(segment)(PHOTOS / "cat.jpg", LABELS)
    assert plain.meta["absent"] == []
    patches, threshold = [], None
    for part in np.linspace(0.2, 0.99, 30):  # the random model decides which labels are likely anywhere
        result = _variant(segment, presence=float(part))(PHOTOS / "cat.jpg", LABELS)
        patches.append(len(result.meta["absent"]))
        if len(result.meta["absent"]) == 1:
            threshold = float(part)
            break
    assert threshold is not None, patches
    (absent,) = result.meta["absent"]
    kept = [label for label in LABELS if not label.startswith(absent)]
    alone = _variant(segment)(PHOTOS / "cat.jpg", kept)
    assert result.names == plain.names
    np.testing.assert_array_equal(result.labels, np.array([plain.names.index(n) for n in alone.names])[alone.labels])
    close(result.scores, plain.scores)


@pytest.mark.parametrize("background", ["none", "sky,wall"])
def test_an_image_without_any_of_the_labels_is_nothing(segment, background) -> None:
    result = _variant(segment, presence=0.9999)(PHOTOS / "cat.jpg", ["cat", "dog"], background=background)
    assert result.meta["absent"] == ["cat", "dog"]
    assert (result.labels == -1).all()
    assert (result.confidence > 0).all()


NESTED = {"animal": ["cat", "dog"], "sky": []}


@pytest.mark.parametrize(
    "options",
    [
        TextOptions(template_weights="image"),
        TextOptions(parents="pixel"),
        TextOptions(parents="image"),
        TextOptions(template_weights="image", parents="pixel"),
        TextOptions(template_weights="image", parents="image"),
        TextOptions(parents="image", descriptors=Descriptors.parse({"animal": "four legs", "sky": "clouds"})),
    ],
    ids=str,
)
def test_text_options_reach_the_labels(segment, options) -> None:
    plain = _variant(segment)(PHOTOS / "cat.jpg", NESTED)
    varied = _variant(segment, text=options)
    result = varied(PHOTOS / "cat.jpg", NESTED, background="wall")
    assert result.names == ("animal", "sky")
    assert result.meta["text"] == options.facts()
    assert np.abs(result.scores - plain.scores).max() > 1e-4
    best = result.scores.argmax(0)
    labelled = result.labels >= 0
    assert (best == result.labels)[labelled].mean() > 0.999
    again = varied(PHOTOS / "cat.jpg", NESTED, background="wall")
    assert (again.labels == result.labels).all()


def test_the_image_feature_is_the_models_own(segment) -> None:
    varied = _variant(segment, text=TextOptions(parents="image"))
    plain = _variant(segment)(PHOTOS / "cat.jpg", NESTED)
    got = varied(PHOTOS / "cat.jpg", NESTED)
    pixels = segment.backbone.preprocess(Image.open(PHOTOS / "cat.jpg").convert("RGB"))[None]
    image = segment.backbone.encode_image(pixels)[0]
    rows = varied.words.classifier.encode(LabelSet.parse(["animal", "sky"])).vectors
    prior = torch.log_softmax(segment.backbone.logit_scale * rows @ (image / image.norm()), 0) / 40
    close(got.scores - plain.scores, prior[:, None, None].expand(got.scores.shape))


def test_labels_without_descriptors_are_warned_about(segment) -> None:
    options = TextOptions(descriptors=Descriptors.parse({"dog": "a wet nose"}))
    result = _variant(segment, text=options)(PHOTOS / "cat.jpg", LABELS)
    assert result.warnings == ("no descriptors for cat, sky: embedded with the templates only",)


@pytest.mark.parametrize(
    "labels",
    [
        [f"thing {i}" for i in range(10_000)],
        ["a long story " * 400, "cat"],
        ["x" * 5000, "cat"],
        ["{} {0.__class__} {", "cat"],
        ["\u732b", "ünïcödé \U0001f408"],
    ],
    ids=["10,000 labels", "5,000 characters", "one word of 5,000 letters", "braces", "other scripts"],
)
def test_unusual_vocabularies_give_a_right_answer(segment, labels, tmp_path, monkeypatch) -> None:
    if len(labels) > 100:  # the tokenizer alone would take seconds
        monkeypatch.setattr(
            segment.backbone, "encode_text", lambda texts: torch.randn(len(texts), segment.backbone.embed_dim)
        )
    small = np.asarray(Image.open(PHOTOS / "cat.jpg").convert("RGB").resize((60, 40)))
    result = segment(small, labels, background="none")
    assert len(result.names) == len(labels)
    assert result.labels.min() >= 0
    assert (result.confidence > 0).all()
    written = result.save(tmp_path / "x.png")
    assert all(path.stat().st_size for path in written)
    if len(labels) < 100:
        assert (result.scores.argmax(0) == result.labels).mean() > 0.999


def test_a_result_goes_to_another_process(segment) -> None:
    result = segment(PHOTOS / "cat.jpg", LABELS)
    again = pickle.loads(pickle.dumps(result))
    assert (again.labels == result.labels).all()
    with pytest.raises(DensevlError, match="no scores"):
        _ = again.scores
    error = pickle.loads(pickle.dumps(MissingExtraError("supervision", "viz", "to_supervision()")))
    assert "densevl[viz]" in str(error)


def test_a_vocabulary_is_encoded_once(segment, monkeypatch) -> None:
    calls = []
    encode = segment.backbone.encode_text
    monkeypatch.setattr(segment.backbone, "encode_text", lambda texts: calls.append(texts) or encode(texts))
    for _ in range(3):
        segment(PHOTOS / "cat.jpg", ["never seen before", "nor this"])
    assert len(calls) == 1


def test_meta_says_how_it_was_made(segment) -> None:
    meta = segment(PHOTOS / "cat.jpg", LABELS).meta
    assert meta["model"] == "tiny"
    assert meta["recipe"].startswith('Recipe("sclip", attention=SelfAttention("qq") + SelfAttention("kk"))')
    assert meta["templates"] == ["a photo of a {}."]
    assert meta["text_fingerprint"] == segment.backbone.text_fingerprint
    assert meta["protocol"]["crop"] == 32
    assert meta["image"].endswith("cat.jpg")


def test_a_recipe_of_your_own(segment) -> None:
    from densevl.recipes import SelfAttention

    mine = Recipe("mine", SelfAttention("vv"), residual=False, ffn=False)
    result = Segmenter(segment.backbone, mine, templates="photo", protocol=SMALL)(PHOTOS / "cat.jpg", LABELS)
    assert result.meta["recipe"] == repr(mine)


def test_refinement_changes_labels_and_scores_alike(segment) -> None:
    refined = Segmenter(segment.backbone, templates="photo", protocol=SMALL, refine="pamr")(PHOTOS / "cat.jpg", LABELS)
    assert (refined.labels == refined.scores.argmax(0)).mean() > 0.999  # all but exact ties
    assert (refined.labels != segment(PHOTOS / "cat.jpg", LABELS).labels).any()
    assert refined.meta["refine"] == "pamr"


def test_unknown_words_become_warnings(segment, monkeypatch) -> None:
    _does_not_know(segment.backbone, "sky", monkeypatch)
    assert segment(PHOTOS / "cat.jpg", LABELS).warnings == ("model 'tiny' does not know 'sky': never seen",)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s(PHOTOS / "cat.jpg", []), LabelError),
        (lambda s: s(PHOTOS / "none.jpg", LABELS), ImageError),
        (lambda s: s(PHOTOS / "README.md", LABELS), ImageError),
        (lambda s: Segmenter(s.backbone, "sclop"), RecipeError),
        (lambda s: Segmenter(s.backbone, background=3.0), OptionError),
        (lambda s: Segmenter(s.backbone, refine="crf"), RecipeError),
        (lambda s: Segmenter(s.backbone, templates="opnai"), OptionError),
        (lambda s: Segmenter(s.backbone, presence=1.0), OptionError),
        (lambda s: s(PHOTOS / "cat.jpg", ["cat", "cat"]), LabelError),
        (lambda s: s(PHOTOS / "cat.jpg", ["x" * 50_000]), LabelError),
        (lambda s: Segmenter(s.backbone, protocol="slidng"), ProtocolError),
        (lambda s: Segmenter(s.backbone, protocol={"crop": 32, "stride": 64}), ProtocolError),
        (lambda s: Segmenter(s.backbone, protocol={"crp": 32}), ProtocolError),
        (lambda s: Segmenter(s.backbone, protocol={"crop": "32"}), ProtocolError),
        (lambda s: Segmenter(s.backbone, protocol={"crop": 0}), ProtocolError),
        (lambda s: Segmenter(s.backbone, protocol={"blend": "feature"}), ProtocolError),
        (lambda s: Segmenter(s.backbone, protocol={"logit_scale": -1}), ProtocolError),
        (lambda s: Segmenter(s.backbone, 3), OptionError),
        (lambda s: Segmenter(s.backbone, device="cpu"), OptionError),
        (lambda s: Segmenter("auto", device="gpu"), OptionError),
        (lambda s: s(PHOTOS / "cat.jpg", None), LabelError),
    ],
)
def test_mistakes_are_one_line(segment, call, error) -> None:
    with pytest.raises(error) as caught:
        call(segment)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "crop", "stride"),
    [
        ("tiles", 224, None),
        ("sliding", 224, 112),
        ({"plan": "sliding", "crop": 64}, 64, 32),
        ({"plan": "sliding", "stride": 56}, 224, 56),
        ("whole", None, None),
        (None, 224, None),
    ],
)
def test_plans_stand_for_windows(given, crop, stride) -> None:
    protocol = Segmenter(wrap(random_clip()), templates="name", protocol=given).protocol
    assert (protocol.crop, protocol.stride) == (crop, stride)
