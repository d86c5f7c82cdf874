"""Things in images, and vectors, beside words: how they are embedded, and that neither kind takes every pixel."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from conftest import PHOTOS
from densevl import BlockSegmenter, FewShot, RegionClassifier, Segmenter
from densevl.cli import app
from densevl.cli.images import labels_of
from densevl.errors import DensevlError, LabelError, OptionError, ProposalError, RecipeError
from densevl.images import read_image
from densevl.inference.kinds import levelled
from densevl.vocabulary import Background, Example, LabelSet, TextOptions, Vector
from densevl.vocabulary.text_classifier import TextEmbeddings

CAT = PHOTOS / "cat.jpg"
SCENE = PHOTOS.parent / "scenes" / "wood.png"
PENGUIN, PIZZA = (14, 120, 70, 182), (116, 62, 160, 108)
SMALL = {"templates": "photo", "protocol": {"short_side": 48, "crop": 32, "stride": 16}, "background": "none"}


def _mask(rgb: np.ndarray, box: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(rgb.shape[:2], bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def test_a_box_and_its_mask_are_the_same_example() -> None:
    rgb = read_image(CAT)
    box, mask = Example(CAT, box=(10, 20, 60, 90)), Example(rgb, mask=_mask(rgb, (10, 20, 60, 90)))
    one, other = (LabelSet.parse({"a": given, "b": "dog"}) for given in (box, mask))
    assert one == other
    assert one != LabelSet.parse({"a": CAT, "b": "dog"})
    assert LabelSet.parse([Example(CAT), "dog"]) == LabelSet.parse([CAT, "dog"])
    for again in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert again == one
        assert np.array_equal(again.synonyms[0][0].mask, _mask(rgb, (10, 20, 60, 90)))
    assert one.synonyms[0][0].cropped.shape == (70, 50, 3)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (Example(CAT, box=(5, 5, 5, 9)), ProposalError),
        (Example(CAT, box=(1, 2, 3)), ProposalError),
        (Example(CAT, mask=np.ones((3, 3), bool)), ProposalError),
        (Example(CAT, mask=np.ones((3, 3), bool), box=(1, 2, 3, 4)), LabelError),
        (Vector([0.0, 0.0]), LabelError),
        (Vector(np.ones((2, 3))), LabelError),
        (Vector("abc"), LabelError),
        (Vector([[1.0], [2.0, 3.0]]), LabelError),
        (Vector(None), LabelError),
        (Vector([True, False]), LabelError),
    ],
)
def test_an_unusable_example_is_one_line(given, error) -> None:
    with pytest.raises(error) as caught:
        LabelSet.parse({"a": given, "b": "dog"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_a_vector_of_any_length_is_its_direction(size) -> None:
    row = np.array([3.0, 0.0, -4.0]) * size
    for given in (row, Vector(row), Vector(torch.from_numpy(row))):
        np.testing.assert_allclose(LabelSet.parse({"a": given}).synonyms[0][0].content, [0.6, 0, -0.8], rtol=1e-6)
    short = Vector(torch.tensor([3.0, 0.0, -4.0], dtype=torch.bfloat16))
    np.testing.assert_allclose(LabelSet.parse([short]).synonyms[0][0].content, [0.6, 0, -0.8], rtol=1e-6)


@pytest.mark.parametrize("kind", [str, type(CAT), read_image])
def test_an_example_alone_in_a_list_has_a_name(kind) -> None:
    names = LabelSet.parse(["dog", Example(kind(CAT), box=(10, 20, 60, 90))]).names
    assert names == ("dog", "image 2" if kind is read_image else "cat")


@pytest.mark.parametrize("box", ["10, 20, 60, 90", " 10 20 60 90", "[10,20,60,90]", "(10, 20, 60, 90)"])
def test_a_box_behind_a_picture_is_read_as_people_write_it(box) -> None:
    assert labels_of("", [f"a={CAT}:{box}"]) == LabelSet.parse({"a": Example(CAT, box=(10, 20, 60, 90))})


@pytest.mark.parametrize("box", ["10,20,60", "10", "10,20,60,90,3", "a,b,c,d", "10,20,60,"])
def test_a_box_has_four_numbers(box) -> None:
    with pytest.raises(LabelError, match="four numbers"):
        labels_of("", [f"a={CAT}:{box}"])


def test_an_example_is_the_mean_of_its_places_by_the_recipe(tiny) -> None:
    segment = Segmenter(tiny, **SMALL | {"protocol": {"short_side": 48, "crop": None}})
    rgb = read_image(CAT)
    half = Example(rgb, box=(0, 0, rgb.shape[1], rgb.shape[0]))
    row = segment.embed_text(LabelSet.parse({"a": half}), Background()).vectors[0]
    dense = segment.run(segment.prepare(rgb).parts).features[0].double()
    cells = F.normalize(dense, dim=0).mean(dim=(1, 2))
    assert float(F.cosine_similarity(row.double(), cells, dim=0)) > 0.999  # upsampled, places at the rim count more
    by_words = segment.embed_text(LabelSet.parse({"a": "cat"}), Background()).vectors[0]
    given = LabelSet.parse({"a": Vector(by_words.numpy(), words=True), "b": "cat"})
    text = segment.embed_text(given, Background())
    assert text.shown is None
    torch.testing.assert_close(text.vectors[0], by_words)


def test_pictures_are_given_the_mean_and_spread_of_words() -> None:
    scores = torch.randn(1, 4, 5, 3) * torch.tensor([1.0, 3.0, 0.5]) + torch.tensor([0.1, 4.0, 0.2])
    text = TextEmbeddings(torch.eye(3), torch.arange(3), ("a", "b", "c"), shown=torch.tensor([False, True, False]))
    found, plain = levelled(scores, text).double().numpy(), scores.double().numpy()
    words = plain[..., [0, 2]]
    wanted = (plain[..., 1] - plain[..., 1].mean()) / plain[..., 1].std() * words.std() + words.mean()
    np.testing.assert_allclose(found[..., 1], wanted, atol=1e-5)
    np.testing.assert_array_equal(found[..., [0, 2]].astype(np.float32), words.astype(np.float32))


def test_neither_kind_takes_every_pixel_of_a_scene() -> None:
    segment = Segmenter("mini", templates="drawing")
    words = segment(SCENE, "penguin,pizza,umbrella,sailboat")
    pictured = {"penguin": Example(SCENE, box=PENGUIN), "pizza": [], "umbrella": [], "sailboat": []}
    mixed = segment(SCENE, pictured)
    assert not [text for text in mixed.warnings if "mixed" in text]
    there = _mask(mixed.image, PENGUIN)
    assert (mixed.labels[there] == 0).mean() > 0.3
    assert (mixed.labels[~there] == 0).mean() < 0.15
    others = (words.labels > 0) & ~there
    assert (mixed.labels[others] == words.labels[others]).mean() > 0.8
    (together,) = segment.many([SCENE], pictured)
    assert (together.labels == mixed.labels).all()
    regions = RegionClassifier("mini", templates="drawing", proposals=None, background="none")
    found = regions(SCENE, pictured, boxes=[PENGUIN, PIZZA])
    assert found.found[0] == "penguin" != found.found[1]


def test_the_part_of_another_model_is_the_box_around_it(tiny) -> None:
    from densevl.vocabulary.text_classifier import TextClassifier

    part = {"a": Example(CAT, box=(10, 20, 60, 90)), "b": read_image(CAT)[20:90, 10:60]}
    rows = TextClassifier(tiny, "photo").encode(LabelSet.parse({"a": part["a"]})).vectors
    torch.testing.assert_close(rows, TextClassifier(tiny, "photo").encode(LabelSet.parse({"a": part["b"]})).vectors)


def test_what_cannot_hold_pictures_beside_words_says_so(tiny) -> None:
    mixed = {"a": Example(CAT, box=(10, 20, 60, 90)), "b": "dog"}
    block = BlockSegmenter(tiny, templates="photo", protocol={"crop": 32}, background="none")
    with pytest.raises(LabelError, match="use only one kind"):
        block(CAT, mixed)
    with pytest.raises(LabelError, match="words only"):
        Segmenter("photo")(CAT, mixed)
    assert FewShot(tiny, templates="photo")(CAT, mixed).name in ("a", "b")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"views": "flip"},
        {"text": TextOptions(template_weights="pixel")},
        {"text": TextOptions(parents="image")},
    ],
    ids=["plain", "views", "pixel", "parents"],
)
def test_kept_features_give_what_a_new_call_gives(tiny, more) -> None:
    segment = Segmenter(tiny, **SMALL, **more)
    first = segment(CAT, "cat,dog", keep=True)
    passes = []
    original = type(tiny).encode_dense
    try:
        type(tiny).encode_dense = lambda self, *args, **more: passes.append(1) or original(self, *args, **more)
        again = first.reclassify({"sky": ["sky", "cloud"], "mug": []}, background="wall").reclassify("a,b,c")
    finally:
        type(tiny).encode_dense = original
    assert not passes
    fresh = segment(CAT, "a,b,c")
    np.testing.assert_allclose(again.scores, fresh.scores, atol=1e-3)
    assert (again.labels == fresh.labels).mean() > 0.98
    assert again.names == fresh.names
    assert again.meta["image"] == fresh.meta["image"] == str(CAT)


def test_without_kept_features_reclassify_says_how(tiny) -> None:
    segment = Segmenter(tiny, **SMALL)
    with pytest.raises(DensevlError, match="keep=True"):
        segment(CAT, "cat,dog").reclassify("a")
    with pytest.raises(DensevlError, match="keep=True"):
        pickle.loads(pickle.dumps(segment(CAT, "cat,dog", keep=True))).reclassify("a")
    with pytest.raises(OptionError, match="boxes belong to these"):
        segment(CAT, "cat,dog", keep=True, boxes={"cat": [1, 1, 9, 9]})
    with pytest.raises(RecipeError, match="'photo'"):
        Segmenter("photo")(CAT, "cat,dog", keep=True)


def test_examples_come_from_the_command_line(tmp_path) -> None:
    found = labels_of("mug|cup,dog | not: toy", [f"mug={CAT}:1,2,30,40", f"my cat={CAT}"])
    assert found.names == ("mug", "dog", "my cat")
    assert [len(words) for words in found.synonyms] == [3, 1, 1]
    assert found.negatives == ("toy",)
    place = ",".join(map(str, PENGUIN))
    asked = ["segment", str(SCENE), "--labels", "pizza", "--like", f"bird={SCENE}:{place}", "--model", "mini"]
    done = CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "bird" in done.stdout
