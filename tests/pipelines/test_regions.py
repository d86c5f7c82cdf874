"""`RegionClassifier` end to end: what it takes, what it returns, what it keeps, what it refuses."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import PHOTOS, close, random_clip, wrap
from densevl.backbones import InferenceProtocol
from densevl.errors import DensevlError, LabelError, ModelError, OptionError, OutputError, RecipeError
from densevl.images import read_image
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.proposals.base import ProposalError, Proposals

SMALL = InferenceProtocol(short_side=48, crop=32, stride=16)
LABELS = ["cat", "dog | puppy", "sky"]
PHOTO = PHOTOS / "cat.jpg"


@pytest.fixture(scope="module")
def backbone():
    return wrap(random_clip())


@pytest.fixture(scope="module")
def classify(backbone):
    return RegionClassifier(backbone, "pool+cls_mask", proposals=None, templates="photo", protocol=SMALL)


def masks_of(size: tuple[int, int]) -> np.ndarray:
    masks = np.zeros((3, *size), bool)
    masks[0, 20:200, 30:300] = True
    masks[1, 50:56, 60:66] = True
    masks[2] = True
    return masks


@pytest.fixture(scope="module")
def result(classify):
    return classify(PHOTO, LABELS, regions=masks_of(read_image(PHOTO).shape[:2]))


def test_every_region_gets_a_name_and_a_score(result) -> None:
    assert len(result) == len(result.found) == len(result.confidence) == 3
    assert set(result.found) <= set(LABELS) | {"dog"}
    assert result.names == ("cat", "dog", "sky")
    assert result.boxes[0].tolist() == [30, 20, 300, 200]
    assert result.masks.shape == (3, *result.image.shape[:2])
    assert (result.scores > 0).all()
    assert (result.confidence == result.scores.max(axis=1)).all()
    assert "3 regions" in repr(result)


def test_a_class_has_the_probability_of_its_best_word(classify, result) -> None:
    found = classify.embed(PHOTO, regions=result.regions)
    flat = classify.name(found, ["cat", "dog", "puppy", "sky"])
    close(result.scores[:, 1], np.maximum(flat.scores[:, 1], flat.scores[:, 2]))
    close(flat.scores.sum(axis=1), 1)


def test_new_words_cost_no_look_at_the_photo(classify, result, monkeypatch) -> None:
    again = classify(PHOTO, ["tree", "car"], regions=result.regions)
    monkeypatch.setattr(classify.backbone, "encode_dense", None)
    monkeypatch.setattr(type(classify.scorer), "_run", None)
    renamed = result.reclassify(["tree", "car"])
    assert renamed.names == ("tree", "car")
    close(renamed.scores, again.scores)
    part = result.select([1, 0]).reclassify(["tree", "car"])
    close(part.scores, again.scores[[1, 0]])
    assert set(result.embeddings) == {"pool", "cls_mask"}


def test_boxes_rle_and_masks_mean_the_same(classify, result) -> None:
    boxes = result.boxes
    by_box = classify(PHOTO, LABELS, boxes=boxes)
    by_rle = classify(PHOTO, LABELS, rle=result.regions.select(slice(0, 3)).to_rle())
    close(by_box.scores, result.scores)
    close(by_rle.scores, result.scores)


@pytest.mark.parametrize("boxes", [[], [[-20.5, -9, 10.25, 12.75]], torch.tensor([[400.0, 250, 999, 999]])])
def test_boxes_of_a_detector_are_taken_as_they_come(boxes, classify) -> None:
    result = classify(PHOTO, LABELS, boxes=boxes)
    assert len(result) == len(boxes)
    assert all(name != "nothing" for name in result.found)


def test_a_proposer_may_be_any_function(backbone) -> None:
    classify = RegionClassifier(
        backbone, proposals=lambda rgb: masks_of(rgb.shape[:2])[:2], templates="photo", protocol=SMALL
    )
    assert classify.operators == {"pool": 0.5, "cls_mask": 0.5}
    assert len(classify(PHOTO, LABELS)) == 2
    none = RegionClassifier(
        backbone, proposals=lambda rgb: Proposals.empty(rgb.shape[:2]), templates="photo", protocol=SMALL
    )
    result = none(PHOTO, LABELS)
    assert len(result) == 0
    assert result.to_coco() == []
    assert (result.semantic().labels == -1).all()
    assert len(result.instances()) == 0
    assert result.panoptic().segments == ()
    assert result.overlay().shape[2] == 3


def test_regions_may_be_rejected(backbone, result) -> None:
    given = {"templates": "photo", "protocol": SMALL}
    strict = RegionClassifier(backbone, proposals=None, background=0.999, **given)(
        PHOTO, LABELS, regions=result.regions
    )
    assert strict.found == ("nothing",) * 3
    assert (strict.scores > 0).all()
    narrow = RegionClassifier(backbone, proposals=None, margin=0.99, **given)(PHOTO, LABELS, regions=result.regions)
    assert narrow.found == ("nothing",) * 3
    words = RegionClassifier(backbone, proposals=None, **given)(
        PHOTO, ["cat"], regions=result.regions, background=["dog", "sky"]
    )
    plain = RegionClassifier(backbone, proposals=None, **given)(PHOTO, ["cat", "dog", "sky"], regions=result.regions)
    assert [n == "cat" for n in words.found] == [n == "cat" for n in plain.found]
    close(words.nothing, plain.scores[:, 1:].max(axis=1))


def test_one_word_alone_is_warned_about(classify, result) -> None:
    alone = classify(PHOTO, ["cat"], regions=result.regions)
    assert any("the only word" in line for line in alone.warnings)
    assert not any("the only word" in line for line in result.warnings)


def test_classify_then_pool_averages_the_probabilities_of_places(backbone, result) -> None:
    given = {"templates": "photo", "protocol": SMALL}
    other = RegionClassifier(backbone, "pool", proposals=None, order="classify_then_pool", **given)
    first = RegionClassifier(backbone, "pool", proposals=None, **given)
    named, plain = (c(PHOTO, LABELS, regions=result.regions) for c in (other, first))
    assert np.isfinite(named.scores).all()
    assert np.abs(named.scores - plain.scores).max() > 1e-4
    again = other(PHOTO, ["cat", "puppy"], regions=result.regions)
    close(named.reclassify(["cat", "puppy"]).scores, again.scores)


def test_a_second_look_is_only_for_the_uncertain(backbone, result) -> None:
    given = {"templates": "photo", "protocol": SMALL}
    plain = RegionClassifier(backbone, proposals=None, **given)(PHOTO, LABELS, regions=result.regions)
    twice = RegionClassifier(backbone, proposals=None, second_look="crop", second_share=0.5, second_top=2, **given)
    found = twice.embed(PHOTO, regions=result.regions)
    named = twice.name(found, LABELS)
    assert 1 <= len(found.second) <= 2
    same = [i for i in range(3) if i not in found.second]
    close(named.scores[same], plain.scores[same])
    assert np.abs(named.scores[list(found.second)] - plain.scores[list(found.second)]).max() > 1e-4


def test_options_reach_their_operator(backbone, result) -> None:
    given = {"templates": "photo", "protocol": SMALL}
    wide = RegionClassifier(
        backbone, "crop", proposals=None, options={"crop": {"expand": 2.0, "fill": "keep"}}, **given
    )
    tight = RegionClassifier(backbone, "crop", proposals=None, **given)
    one = result.regions.select([1])
    assert np.abs(wide(PHOTO, LABELS, regions=one).scores - tight(PHOTO, LABELS, regions=one).scores).max() > 1e-5


def test_recipes_of_segments_read_the_regions(backbone, result) -> None:
    found = RegionClassifier(
        backbone, "pool", recipe="corrclip", proposals=None, templates="photo", protocol=SMALL, proxy="mini-sam"
    )
    assert np.isfinite(found(PHOTO, LABELS, regions=result.regions).scores).all()


def test_examples_stand_for_words(classify, result) -> None:
    found = classify.embed(PHOTO, regions=result.regions.select(slice(0, 3)))
    parts = {name: classify.embed(PHOTO, regions=result.regions.select([i])) for i, name in enumerate("abc")}
    assert classify.name_like(found, parts).found == ("a", "b", "c")
    rejected = classify.name_like(found, {"a": parts["a"], "nothing": parts["c"], "b": parts["b"]})
    assert rejected.found == ("a", "b", "nothing")
    assert rejected.names == ("a", "b")
    by_words = classify.name_like(found, {"cat": parts["a"], "sky": parts["b"]}, words=1.0)
    plain = classify.name(found, ["cat", "sky"], background="none")
    close(by_words.scores, plain.scores)
    assert classify.name_like(found, parts, threshold=0.9999).found == ("nothing",) * 3


@pytest.mark.parametrize(
    ("names", "words", "match"), [("a", 0.0, "at least two"), ("ab", 2.0, "words is 2"), ("ad", 0.0, "'d'")]
)
def test_unusable_examples_are_refused(names, words, match, classify, result) -> None:
    rows = {"a": [0], "b": [1], "d": []}
    parts = {name: classify.embed(PHOTO, regions=result.regions.select(rows[name])) for name in names}
    with pytest.raises((LabelError, OptionError), match=match):
        classify.name_like(classify.embed(PHOTO, regions=result.regions), parts, words=words)


def test_clicks_become_masks_with_names() -> None:
    pytest.importorskip("segment_anything")
    scene = PHOTOS.parent / "scenes" / "water.png"
    result = RegionClassifier("mini")(scene, ["elephant", "fish", "house"], points=[[116, 108]])
    assert result.found == ("elephant",)
    assert result.regions.mask(0)[108, 116]


@pytest.mark.parametrize("recipe", ["textregion", "resclip"])
def test_recipes_without_features_of_their_own_are_asked_for_scores(recipe, backbone, result) -> None:
    given = {"templates": "photo", "protocol": SMALL}
    classify = RegionClassifier(backbone, "pool", recipe=recipe, proposals=None, **given)
    assert classify.order == "classify_then_pool"
    found = classify(PHOTO, LABELS, regions=result.regions)
    assert np.isfinite(found.scores).all()
    assert np.abs(found.scores - result.scores).max() > 1e-4
    with pytest.raises(RecipeError, match="no features to pool"):
        RegionClassifier(backbone, "pool", recipe=recipe, proposals=None, order="pool_then_classify", **given)


def test_maps_and_instances(result) -> None:
    semantic = result.semantic()
    assert semantic.labels.shape == result.image.shape[:2]
    assert semantic.labels[53, 63] == result.labels[1], "the smallest region has its pixels"
    few = result.select(slice(0, 2))
    assert (few.semantic().labels[0] == -1).all()
    assert (few.semantic(fill=True).labels[0] >= 0).all()
    ids = result.panoptic().ids
    assert ids.shape == result.image.shape[:2]
    assert len(result.panoptic(stuff=LABELS[:1]).segments) >= 1
    best = result.instances(iou=0.9)
    assert (np.diff(best.confidence) <= 0).all()
    assert "nothing" not in best.found
    with pytest.raises(DensevlError, match="no class 'car'"):
        result.panoptic(stuff=["car"])


def test_the_ways_out(result, tmp_path) -> None:
    coco = result.to_coco(7)
    assert [entry["image_id"] for entry in coco] == [7] * 3
    assert coco[0]["bbox"] == [30, 20, 270, 180]
    assert coco[0]["category_name"] == result.found[0]
    written = result.save(tmp_path / "out" / "cat.json")
    assert [path.name for path in written] == ["cat.json", "cat_overlay.png"]
    content = json.loads(written[0].read_text())
    assert content["names"] == ["cat", "dog", "sky"]
    assert len(content["regions"]) == 3
    assert content["meta"]["model"] == "tiny"
    assert Image.open(written[1]).size[0] >= result.image.shape[1]
    with pytest.raises(OutputError, match=r"end the name in \.json"):
        result.save(tmp_path / "cat.png")


def test_supervision_gets_the_named_regions(result) -> None:
    pytest.importorskip("supervision")
    found = result.to_supervision()
    assert len(found) == 3
    assert found.data["class_name"].tolist() == list(result.found)
    assert found.mask.shape == (3, *result.image.shape[:2])


def test_a_result_travels_without_its_model(result) -> None:
    there = pickle.loads(pickle.dumps(result))
    assert there.found == result.found
    with pytest.raises(DensevlError, match="left its model"):
        there.reclassify(["cat"])
    with pytest.raises(DensevlError, match="left its model"):
        there.semantic(fill=True)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({}, ProposalError, "give regions=, boxes= or rle="),
        ({"regions": np.zeros((1, 5, 5), bool)}, ProposalError, r"\(5, 5\)"),
        ({"boxes": [[0, 0, 5]]}, ProposalError, "boxes of shape"),
        ({"boxes": [[0, 0, np.nan, 5]]}, ProposalError, "box 0"),
        ({"rle": [{"size": [5, 5], "counts": [25]}]}, ProposalError, r"of \(5, 5\)"),
        ({"boxes": [], "rle": []}, ProposalError, "not boxes and rle"),
        ({"regions": Proposals.empty((5, 5))}, ProposalError, r"of \(5, 5\)"),
    ],
)
def test_unfit_regions_are_refused_in_one_line(given, error, match, classify) -> None:
    with pytest.raises(error, match=match) as caught:
        classify(PHOTO, LABELS, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"operator": "pol"}, OptionError, "closest: pool"),
        ({"operator": "alpha"}, ModelError, "Alpha-CLIP"),
        ({"order": "both"}, OptionError, "order is 'both'"),
        ({"operator": "crop", "order": "classify_then_pool"}, OptionError, "for operator 'pool'"),
        ({"second_share": 0}, OptionError, "second_share is 0"),
        ({"margin": 1}, OptionError, "margin is 1"),
        ({"second_look": "pool+crop"}, OptionError, "one operator"),
        ({"options": {"crop": {}}}, OptionError, "options for 'crop'"),
        ({"recipe": "nonsense"}, RecipeError, "nonsense"),
    ],
)
def test_unusable_settings_are_refused_before_any_photo(given, error, match, backbone) -> None:
    with pytest.raises(error, match=match) as caught:
        RegionClassifier(backbone, proposals=None, **given)
    assert "\n" not in str(caught.value)


def test_the_shipped_model_knows_its_own_drawings() -> None:
    classify = RegionClassifier("mini", "cls_mask", proposals=None)
    scene = PHOTOS.parent / "scenes" / "wood.png"
    boxes = [[18, 122, 75, 184], [105, 101, 159, 157], [30, 8, 72, 50], [150, 165, 190, 190]]
    names = classify(scene, ["penguin", "mushroom", "aeroplane", "cat"], boxes=boxes).found
    assert names[:3] == ("penguin", "mushroom", "aeroplane")
    assert names[3] == "nothing", "wood competes as background"
