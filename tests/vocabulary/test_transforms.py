"""What is done last to the embeddings of words: files, all rows alike, and a matrix that learns to bind words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from conftest import PHOTOS
from densevl import FewShot, RegionClassifier, Segmenter
from densevl.errors import OptionError, RecipeError, WeightsError
from densevl.vocabulary import Background, LabelSet, TextOptions
from densevl.vocabulary.text_classifier import TextClassifier
from densevl.vocabulary.transforms.linear import LinearText
from densevl.vocabulary.transforms.load import load_transform

CAT = PHOTOS / "cat.jpg"
SMALL = {"templates": "photo", "protocol": {"short_side": 48, "crop": 32, "stride": 16}}
BOX = [[10, 10, 90, 90]]


@dataclass(frozen=True, eq=False)
class Shift(LinearText):
    """Adds the mean feature of the photo to every row, and does not normalise."""

    needs_image: ClassVar[bool] = True

    def apply(self, rows_TE, dense_Ehw=None):
        return rows_TE + dense_Ehw.mean(dim=(1, 2))


def _matrix(width: int) -> LinearText:
    return LinearText(torch.eye(width) + 0.3 * torch.randn(width, width))


def _classifier(tiny, transform=None, **more) -> TextClassifier:
    return TextClassifier(tiny, "simple", TextOptions(transform=transform, **more), use_cache=False)


def test_classes_negatives_and_background_are_moved_alike_and_images_are_not(tiny) -> None:
    labels = LabelSet.parse({"cat": ["cat", "not: toy"], "thing": np.ones(tiny.embed_dim)})
    policy, own = Background.parse(["sky"]), _matrix(tiny.embed_dim)
    plain = _classifier(tiny).encode(labels, policy)
    moved = _classifier(tiny, own).encode(labels, policy)
    rows = plain.vectors.double().numpy() @ own.weight.double().numpy().T
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[1] = plain.vectors[1]
    assert plain.queries == ("cat", labels.queries[1], "toy", "sky")
    np.testing.assert_allclose(moved.vectors, rows, atol=1e-6)


@pytest.mark.parametrize("more", [{"template_weights": "image"}, {"parents": "pixel"}, {"parents": "image"}])
def test_the_identity_changes_no_row(tiny, more) -> None:
    image = torch.randn(tiny.embed_dim)
    labels = LabelSet.parse({"animal": ["cat", "dog"], "sky": ["cloud"]})
    plain, same = (_classifier(tiny, own, **more) for own in (None, LinearText(torch.eye(tiny.embed_dim))))
    before, after = (one.for_image(one.encode(labels), image) for one in (plain, same))
    torch.testing.assert_close(after.vectors, before.vectors, atol=1e-6, rtol=1e-6)
    assert (after.bias is None) == (before.bias is None)


def test_a_row_is_moved_after_its_templates_were_averaged(tiny) -> None:
    own = _matrix(tiny.embed_dim)
    mean = _classifier(tiny).encode(LabelSet.parse("cat")).vectors
    moved = _classifier(tiny, own, template_weights="image").encode(LabelSet.parse("cat"))
    found = _classifier(tiny, own, template_weights="image").for_image(moved, torch.zeros(tiny.embed_dim)).vectors
    torch.testing.assert_close(found, own.apply(mean), atol=1e-5, rtol=1e-5)


def test_every_pipeline_takes_it_and_says_so(tiny) -> None:
    text = TextOptions(transform=_matrix(tiny.embed_dim))
    told = {"name": "LinearText", "weights": text.transform.fingerprint}
    segment = Segmenter(tiny, text=text, **SMALL)
    result = segment(CAT, "cat,dog")
    assert result.meta["text"]["transform"] == told == segment.facts()["text"]["transform"]
    assert not np.allclose(result.scores, Segmenter(tiny, **SMALL)(CAT, "cat,dog").scores)
    regions = RegionClassifier(tiny, proposals=None, text=text, **SMALL)
    plain = RegionClassifier(tiny, proposals=None, **SMALL)
    assert not np.allclose(regions(CAT, "cat,dog", boxes=BOX).scores, plain(CAT, "cat,dog", boxes=BOX).scores)
    assert FewShot(tiny, templates="photo", text=text)(CAT, "cat,dog").name in ("cat", "dog")


def test_one_that_reads_the_photo_has_its_features(tiny) -> None:
    text = TextOptions(transform=Shift(torch.eye(tiny.embed_dim)))
    whole = {**SMALL, "protocol": {"short_side": 48, "crop": None, "stride": None}, "background": "none"}
    segment = Segmenter(tiny, text=text, **whole)
    evidence = segment(CAT, "cat,dog")
    rows = Segmenter(tiny, **whole).embed_text(LabelSet.parse("cat,dog"), Background()).vectors
    image = segment.words.for_photo(evidence.image, LabelSet.parse("cat,dog"), Background()).vectors
    torch.testing.assert_close(image[0] - rows[0], image[1] - rows[1], atol=1e-5, rtol=1e-5)
    assert float((image - rows).norm()) > 0
    assert RegionClassifier(tiny, proposals=None, text=text, **whole)(CAT, "cat,dog", boxes=BOX).found
    with pytest.raises(OptionError, match="reads no image"):
        FewShot(tiny, text=text)
    with pytest.raises(OptionError, match="compared with many"):
        RegionClassifier(tiny, proposals=None, text=text).embed_text(LabelSet.parse("cat"), Background())
    segment.recipe = None
    with pytest.raises(RecipeError, match="no features for a text transform"):
        segment(CAT, "cat,dog")


def test_files_come_back_and_are_known_by_their_tensors(tmp_path) -> None:
    own = _matrix(6)
    again = load_transform(own.save(tmp_path / "w.safetensors"))
    assert isinstance(again, LinearText)
    assert torch.equal(again.weight, own.weight)
    assert again.fingerprint == own.fingerprint != _matrix(6).fingerprint
    torch.save({"linear.weight": own.weight.half(), "t": torch.tensor(4.0)}, tmp_path / "theirs.pt")
    assert TextOptions.parse({"transform": str(tmp_path / "theirs.pt")}).transform.width == 6


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"linear.weight": torch.zeros(3, 4)}, "a square matrix"),
        ({"linear.weight": torch.ones(3, 3, dtype=torch.int64)}, "w.safetensors' .*give floats"),
        ({"linear.weight": torch.full((3, 3), torch.nan)}, "w.safetensors' .*NaN"),
        ({"linear.weight": torch.zeros(3, 3)}, "w.safetensors' .*only zeros"),
        ({"linear.weight": torch.zeros(3, 3), "fc.weight": torch.zeros(1)}, "holds no text transform"),
        ({"conv": torch.zeros(3)}, "holds no text transform"),
    ],
)
def test_other_files_are_one_line(tmp_path, tensors, match) -> None:
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=match) as caught:
        load_transform(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused(tiny) -> None:
    with pytest.raises(OptionError, match="is for embeddings of 6 numbers"):
        Segmenter(tiny, text=TextOptions(transform=_matrix(6)))
    with pytest.raises(OptionError, match="no joint space"):
        Segmenter("photo", text=TextOptions(transform=_matrix(6)))
    with pytest.raises(OptionError, match="give a TextTransform"):
        TextOptions(transform="w.safetensors")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="give a file"):
        TextOptions.parse({"transform": 3})
    with pytest.raises(OptionError, match="is a square matrix"):
        LinearText(torch.zeros(2, 3))


def test_a_word_of_zeros_is_refused_and_a_tiny_matrix_is_not(tiny) -> None:
    labels, own = LabelSet.parse("cat,dog"), _matrix(tiny.embed_dim)
    wanted = _classifier(tiny, own).encode(labels).vectors
    torch.testing.assert_close(_classifier(tiny, LinearText(own.weight * 1e-30)).encode(labels).vectors, wanted)

    class Nothing(LinearText):
        def apply(self, rows_TE, dense_Ehw=None):
            return rows_TE * 0

    for parents in ("none", "pixel"):
        with pytest.raises(OptionError, match="row of zeros"):
            _classifier(tiny, Nothing(own.weight), parents=parents).encode(labels)


def test_a_matrix_learns_which_word_belongs_to_which() -> None:
    """Images know the pair of each thing and colour, texts too, along axes that a cosine does not compare."""
    first, second = torch.randint(0, 2, (2, 64))
    sign = (2.0 * first - 1) * (2 * second - 1)  # how they are bound
    common, width = torch.randn(64, 5), 16
    images, texts, negatives = (torch.zeros(64, width) for _ in range(3))
    images[:, :5], texts[:, :5], negatives[:, :5] = common, common, common
    images[:, 8], texts[:, 9], negatives[:, 9] = sign, sign, -sign  # bound in each of the two, in other directions
    images, texts, negatives = (F.normalize(rows, dim=1) for rows in (images, texts, negatives))

    def right(own: LinearText) -> float:
        return float(((images * (own.apply(texts) - own.apply(negatives))).sum(1) > 0).float().mean())

    assert right(LinearText(torch.eye(width))) == 0
    fitted = LinearText.fit(images, texts, negatives, epochs=30, batch=32, rate=0.01)
    assert right(fitted) == 1
    assert torch.equal(fitted.weight, LinearText.fit(images, texts, negatives, epochs=30, batch=32, rate=0.01).weight)


@pytest.mark.parametrize("change", [{"epochs": 0}, {"batch": 1}, {"rate": 0.0}, {"negatives_NE": torch.ones(3, 2)}])
def test_a_fit_that_cannot_be_is_refused(change) -> None:
    rows = {name: torch.randn(4, 3) for name in ("images_NE", "texts_NE", "negatives_NE")}
    with pytest.raises(OptionError):
        LinearText.fit(**{**rows, **change})
