"""Images and vectors in the place of words, in every pipeline, and the mistakes with them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from conftest import PHOTOS
from densevl import FewShot, RegionClassifier, RegionSearch, Segmenter
from densevl.errors import ImageError, LabelError
from densevl.images import read_image, resize
from densevl.vocabulary import LabelSet
from densevl.vocabulary.prompts import Prompt

CAT = PHOTOS / "cat.jpg"
RGB = read_image(CAT)
SMALL = {"short_side": 48, "crop": 32, "stride": 16}
SCENES = PHOTOS.parent / "scenes"


def test_every_form_of_an_image_is_the_same_prompt() -> None:
    forms = [CAT, Image.fromarray(RGB), RGB, torch.from_numpy(RGB)]
    sets = [LabelSet.parse({"a": form, "b": "dog"}) for form in forms]
    assert len({hash(one) for one in sets}) == 1
    assert all(one == sets[0] for one in sets)
    assert sets[0] != LabelSet.parse({"a": RGB[::-1], "b": "dog"})
    assert sets[0].words == ["dog"]
    assert LabelSet.parse([CAT, "dog", RGB[:9]]).names == ("cat", "dog", "image 3")


def test_words_images_and_vectors_may_share_a_class() -> None:
    labels = LabelSet.parse({"a": [CAT, "cat", np.ones(4)], "b": [np.zeros((2, 2, 3), np.uint8)]})
    assert [type(word) for word in labels.synonyms[0]] == [Prompt, str, Prompt]
    assert labels.query_classes == [0, 0, 0, 1]
    for other in (copy.deepcopy(labels), pickle.loads(pickle.dumps(labels))):
        assert other == labels
        assert np.array_equal(other.synonyms[0][0].content, RGB)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        (np.zeros((2, 3)), LabelError, "several of them are a list"),
        (np.zeros((4, 4, 3)), LabelError, r"float64 \(4, 4, 3\)"),
        (np.zeros((4, 4), np.uint8), LabelError, "an image is uint8"),
        (np.arange(4), LabelError, "int64"),
        (np.array([1.0, np.nan]), LabelError, "not finite"),
        (torch.zeros(4), LabelError, "only zeros"),
        (Path("none.jpg"), ImageError, "none.jpg"),
        ([[1.0, 2.0]], LabelError, "is a list"),
        (3, LabelError, "int"),
    ],
)
def test_what_is_no_prompt_is_one_line(given, error, match) -> None:
    with pytest.raises(error, match=match) as caught:
        LabelSet.parse({"a": given, "b": "dog"})
    assert "\n" not in str(caught.value)


def test_an_image_given_twice_is_refused() -> None:
    with pytest.raises(LabelError, match="given twice"):
        LabelSet.parse({"a": CAT, "b": RGB})


def test_prompts_are_embedded_as_images_and_not_cached_on_disk(tiny, monkeypatch) -> None:
    stored = []
    monkeypatch.setattr("densevl.vocabulary.text_cache.TextCache.put", lambda self, rows: stored.extend(rows))
    monkeypatch.setattr("densevl.vocabulary.text_cache.TextCache.get", lambda self, texts: {})
    segment = Segmenter(tiny, templates="photo", protocol=SMALL, background="none")
    vector = torch.randn(tiny.embed_dim)
    labels = LabelSet.parse({"cat": CAT, "dog": "dog", "thing": vector})
    rows = segment.embed_text(labels, segment.background).vectors
    assert stored == ["dog"]
    size = tuple(tiny.tower.image_size)
    own = tiny.encode_image(tiny.normalize(resize(RGB, size))[None])[0]
    torch.testing.assert_close(rows[0], F.normalize(own, dim=0))
    torch.testing.assert_close(rows[2], F.normalize(vector, dim=0))
    looks = []
    monkeypatch.setattr(type(tiny), "encode_image", lambda self, pixels: looks.append(1))
    segment.embed_text(LabelSet.parse({"a": RGB}), segment.background)
    assert not looks, "an equal image is not encoded again"


def test_pipelines_take_images_where_they_take_words(tiny) -> None:
    settings = {"templates": "photo", "protocol": SMALL, "background": "none"}
    given = {"cat": [CAT], "other": [PHOTOS / "coffee.jpg", np.ones(tiny.embed_dim)]}
    result = Segmenter(tiny, **settings)(CAT, given)
    assert result.names == ("cat", "other")
    assert result.warnings == ()
    regions = RegionClassifier(tiny, proposals=None, **settings)(CAT, given, boxes=[[10, 10, 90, 90]])
    assert np.isfinite(regions.scores).all()
    assert FewShot(tiny, templates="photo")(CAT, [CAT, PHOTOS / "coffee.jpg"]).name == "cat"
    fitted = FewShot(tiny, "gda", templates="photo").fit({"cat": [RGB]}, labels=given)
    assert fitted(CAT).names == ("cat", "other")


def test_what_was_guessed_of_the_labels_reaches_every_result(tiny) -> None:
    settings = {"templates": "photo", "protocol": SMALL, "background": "none"}
    told = "taken for two classes"
    given = LabelSet(("cat", "cup"), (("cat",), ("cup",)), warnings=(told,))
    assert given == LabelSet.parse("cat,cup")
    assert hash(given) == hash(LabelSet.parse("cat,cup"))
    assert told in Segmenter(tiny, **settings)(CAT, given).warnings
    name = RegionClassifier(tiny, proposals=None, **settings)
    assert told in name(CAT, given, boxes=[[10, 10, 90, 90]]).warnings
    assert told in FewShot(tiny, templates="photo")(CAT, given).warnings


def test_whole_images_are_not_put_on_one_scale_and_that_is_said(tiny) -> None:
    assert "put on one scale" in FewShot(tiny, templates="photo")(CAT, {"a": CAT, "b": "dog"}).warnings[-1]
    assert FewShot(tiny, templates="photo")(CAT, {"a": CAT, "b": np.ones(tiny.embed_dim)}).warnings == ()


def test_what_a_model_cannot_compare_is_one_line(tiny) -> None:
    with pytest.raises(LabelError, match="has 3 numbers, and the joint space"):
        Segmenter(tiny, templates="photo", protocol=SMALL)(CAT, {"a": np.ones(3)})
    with pytest.raises(LabelError, match="words only"):
        Segmenter("photo")(CAT, [CAT])


def test_a_search_by_image_finds_the_thing() -> None:
    scene = read_image(SCENES / "wood.png")
    boxes = [[18, 122, 75, 184], [105, 101, 159, 157], [30, 8, 72, 50]]

    def propose(rgb):
        from densevl.proposals import Proposals

        return Proposals.from_boxes(boxes, rgb.shape[:2])

    search = RegionSearch(RegionClassifier("mini", "cls_mask", proposals=propose))
    search.build(SCENES / "wood.png")
    for x0, y0, x1, y1 in boxes:
        best = search.find(scene[y0:y1, x0:x1], top=3, each=3)[0]
        assert np.abs(np.array(best.box) - (x0, y0, x1, y1)).max() <= 1
