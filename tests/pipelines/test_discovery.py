"""Regions named without labels: which words are kept, which regions become one, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import PHOTOS, random_clip, wrap
from densevl.backbones import InferenceProtocol
from densevl.backbones.reach import Reach
from densevl.errors import LabelError, OptionError
from densevl.images import read_image
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.regions.discovery import alike, few_words, merged_probs, readable, together, union
from densevl.proposals.base import Proposals
from densevl.regions.embedded import RegionEmbeddings
from densevl.vocabulary import LabelSet
from densevl.vocabulary.nouns import nouns

PHOTO = PHOTOS / "cat.jpg"


@pytest.fixture(scope="module")
def classify() -> RegionClassifier:
    protocol = InferenceProtocol(short_side=48, crop=32, stride=16)
    return RegionClassifier(wrap(random_clip()), "pool+cls_mask", proposals=None, templates="photo", protocol=protocol)


def halves() -> np.ndarray:
    masks = np.zeros((4, *read_image(PHOTO).shape[:2]), bool)
    masks[0, 20:200, 30:300] = True
    masks[1, 30:100, 40:290] = True  # inside the first
    masks[2, 210:, 310:] = True
    masks[3] = True
    return masks


@pytest.mark.parametrize(
    ("rows", "agree", "chosen"),
    [
        ([[0.4, 0.3, 0], [0.3, 0.4, 0], [0, 0.2, 0.1]], 0.5, [1]),
        ([[0.4, 0.3, 0], [0.3, 0.4, 0], [0, 0.2, 0.1]], 1.0, [1, 0]),
        ([[0.9, 0, 0], [0, 0, 0.9]], 0.5, [0, 2]),
        ([[0.0, 0.0, 0.0]], 0.5, [0]),
    ],
    ids=["one word suits all", "each its own", "two things", "nothing there"],
)
def test_as_few_words_as_will_do(rows, agree, chosen) -> None:
    assert few_words(torch.tensor(rows), agree) == chosen
    assert few_words(torch.zeros(0, 3), agree) == [0]


def test_regions_of_one_word_that_overlap_become_one() -> None:
    masks = np.zeros((5, 8, 8), bool)
    masks[0, :4] = True
    masks[1, 2:4, :4] = True  # within 0, same word
    masks[2, 3:6] = True  # a third of it overlaps
    masks[3, :4, :4] = True  # within 0, another word
    regions = Proposals.from_masks(masks)
    labels = np.array([0, 0, 0, 1, -1])
    assert together(regions, labels, 0.5) == [[0, 1], [2], [3], [4]]
    assert together(regions, labels, 0.2) == [[0, 1, 2], [3], [4]]
    assert together(regions, labels, 1.0) == [[0], [1], [2], [3], [4]]
    assert together(regions, labels, None) == [[0, 1, 2], [3], [4]]
    rows = torch.eye(5)
    found = RegionEmbeddings(np.zeros((8, 8, 3), np.uint8), regions, {"pool": rows})
    united = union(found, [[0, 1], [2], [3], [4]])
    assert united.regions.areas.tolist() == [32, 24, 16, 0]
    torch.testing.assert_close(united.vectors["pool"].norm(dim=1), torch.tensor([1.0, 1, 1, 0]))
    assert united.vectors["pool"][0].argmax() == 0, "the larger member weighs more"
    means = merged_probs(torch.tensor([[1.0], [0], [0.5], [0.5], [0]]), regions.areas, [[0, 1], [2], [3], [4]])
    torch.testing.assert_close(means.flatten(), torch.tensor([0.8, 0.5, 0.5, 0]))


def test_a_photo_names_itself(classify, tmp_path) -> None:
    words = ["cat", "dog | puppy", "sky", "sofa", "grass"]
    result = classify.discover(PHOTO, words, regions=halves())
    assert set(result.found) <= {"cat", "dog", "sky", "sofa", "grass", "nothing"}
    assert set(result.names) <= set(words) | {"dog"}
    assert 1 <= len(result) <= 5
    assert result.scores.shape == (len(result), len(result.names))
    assert (result.scores.sum(axis=1) <= 1 + 1e-5).all(), "probabilities are among the whole list"
    again = result.reclassify(["cat", "sky"])
    assert len(again) == len(result)
    assert result.panoptic().ids.shape == result.image.shape[:2]
    listed = tmp_path / "words.txt"
    listed.write_text("cat\ndog, puppy\nsky\nsofa\ngrass\n")
    assert classify.discover(PHOTO, listed, regions=halves()).found == result.found


def test_unsure_regions_are_nothing_and_none_are_none(classify) -> None:
    sure = classify.discover(PHOTO, ["cat", "sky", "sofa"], regions=halves(), threshold=0.999)
    assert set(sure.found) == {"nothing"}
    empty = classify.discover(PHOTO, ["cat", "sky"], boxes=[])
    assert len(empty) == 0
    assert empty.found == ()


def test_the_list_is_plain_and_large() -> None:
    words = nouns()
    assert len(words) > 1200
    assert {"cat", "sofa", "puppy", "road", "sky", "television"} <= set(words.queries)
    assert all(word == " ".join(word.split()) for word in words.queries)


def test_words_that_the_model_does_not_read_are_left_out() -> None:
    words = LabelSet.parse(["cat | moggy", "dog", "quokka"])
    unknown = ("moggy", "quokka")
    few, count = readable(words, lambda asked: [Reach(w, trust="none" if w in unknown else "weak") for w in asked])
    assert few == LabelSet.parse(["cat", "dog"])
    assert count == 2
    with pytest.raises(LabelError, match="knows none of the 4 words"):
        readable(words, lambda asked: [Reach(word, "similarity", "weak") for word in asked])


@pytest.mark.parametrize("shares", [{"agree": 0}, {"agree": 1.5}, {"overlap": -0.1}])
def test_shares_out_of_range_are_refused(shares, classify) -> None:
    with pytest.raises(OptionError, match="a share"):
        classify.discover(PHOTO, ["cat", "dog"], regions=halves(), **shares)


def test_neighbours_that_are_alike_become_one_the_most_alike_first() -> None:
    masks = np.zeros((5, 6, 12), bool)
    for index, (first, last) in enumerate([(0, 2), (2, 5), (5, 8), (9, 12)]):  # the fourth touches none
        masks[index, :, first:last] = True
    rows = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1, 0.2], [0.3, 1], [1, 0.1], [1, 0]]), dim=1)
    words = torch.eye(2)[[0, 0, 1, 0, 0]]
    regions = Proposals.from_masks(masks)
    assert alike(regions, rows, words, 0.8) == [[0, 1], [2], [3], [4]]
    assert alike(regions, rows, words, -1.0) == [[0, 1, 2], [3], [4]]
    assert alike(regions, rows, words, 1.0) == [[0], [1], [2], [3], [4]]
    apart = torch.eye(2)[[0, 1, 1, 0, 0]]  # as alike, and called something else
    assert alike(regions, rows, apart, 0.8) == [[0], [1], [2], [3], [4]]


def test_joined_regions_are_embedded_anew(classify) -> None:
    masks = np.zeros((3, *read_image(PHOTO).shape[:2]), bool)
    masks[0, :100], masks[1, 100:200], masks[2, 200:] = True, True, True
    whole = np.ones((1, *masks.shape[1:]), bool)
    joined = classify.discover(PHOTO, "cat,dog,sky", regions=masks, merge=-1.0)
    once = classify.discover(PHOTO, "cat,dog,sky", regions=whole)
    assert len(joined.labels) == 1
    np.testing.assert_allclose(joined.embeddings["pool"], once.embeddings["pool"], atol=1e-6)
    assert len(classify.discover(PHOTO, "cat,dog,sky", regions=masks, merge=1.0, overlap=1.0).labels) == 3
    with pytest.raises(OptionError, match="merge is 2"):
        classify.discover(PHOTO, "cat", regions=masks, merge=2)


@pytest.mark.parametrize("name", ["merge", "agree", "overlap", "threshold"])
@pytest.mark.parametrize("value", ["x", True, float("nan"), 2])
def test_a_number_out_of_range_is_one_line(classify, name, value) -> None:
    with pytest.raises(OptionError, match=name):
        classify.discover(PHOTO, "cat,dog", regions=halves(), **{name: value})


def test_discover_has_no_background(classify) -> None:
    with pytest.raises(OptionError, match="no option 'background'"):
        classify.discover(PHOTO, "cat,dog", merge=0.8, background="scenes")
