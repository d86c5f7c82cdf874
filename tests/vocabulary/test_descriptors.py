"""Descriptors: which sentences they become, how they mix with the templates, and what falls back."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from conftest import close, random_clip, wrap
from densevl.errors import OptionError
from densevl.vocabulary import Background, Descriptors, LabelSet, TextOptions
from densevl.vocabulary.text_classifier import TextClassifier


@pytest.fixture(scope="module")
def backbone():
    return wrap(random_clip(seed=1))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("four legs", "hen, which has four legs"),
        ("a red comb", "hen, which is a red comb"),
        ("often brown", "hen, which often brown"),
        ("has feathers", "hen, which has feathers"),
        ("A female bird.", "A female bird."),
        ("the hen on its nest", "the hen on its nest"),
        ("a hen-like gait", "a hen-like gait"),
        ("then some", "hen, which has then some"),  # holds "hen", does not name it
        ("a {} on a farm", "a hen on a farm"),
    ],
)
def test_features_become_sentences_and_sentences_stay(text, sentence) -> None:
    assert Descriptors.parse({"Hen": text}).sentences("hen", "hen") == (sentence,)


def test_a_synonym_takes_its_own_texts_or_those_of_its_class() -> None:
    texts = Descriptors.parse({"car": "wheels", "lorry": "a trailer"})
    assert texts.sentences("lorry", "car") == ("lorry, which is a trailer",)
    assert texts.sentences("van", "car") == ("van, which has wheels",)
    assert texts.sentences("sky", "sky") == ()


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("weight", [0.2, 1.0])
def test_the_mix_is_the_formula(backbone, weight, unit) -> None:
    texts = Descriptors.parse({"cat": ["whiskers", "A cat is a small animal."]}, weight=weight, unit=unit)
    classifier = TextClassifier(backbone, "simple", TextOptions(descriptors=texts))
    labels = LabelSet.parse("cat,dog")
    policy = Background(words=("cat house",))
    got = classifier.encode(labels, policy).vectors
    plain = TextClassifier(backbone, "simple").encode(labels, policy).vectors
    prompts = backbone.encode_text(["cat, which has whiskers", "A cat is a small animal."])
    described = F.normalize(F.normalize(prompts, dim=-1).mean(0), dim=-1)
    want = (1 - weight) * plain[0] + weight * described
    close(got[0], F.normalize(want, dim=-1) if unit else want)
    assert torch.equal(got[1:], plain[1:])
    assert classifier.undescribed(labels) == ["dog"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "descriptors are a list"),
        ("{}", "not empty"),
        ('{"cat": []}', "'cat' are not a list"),
        ('{"cat": {"why": ["x"]}}', "'cat' are not a list"),
        ('{"cat": [3]}', "is a int"),
        ('{"cat": 3}', "is a int"),
        ('{"cat": [" "]}', "empty descriptor"),
    ],
)
def test_unusable_files_say_why_in_one_line(tmp_path, content, reason) -> None:
    (tmp_path / "looks.json").write_text(content)
    with pytest.raises(OptionError, match=reason) as caught:
        Descriptors.parse(tmp_path / "looks.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.5])
def test_unusable_weights(weight) -> None:
    with pytest.raises(OptionError):
        Descriptors.parse({"cat": "fur"}, weight=weight)


def test_a_file_is_a_dict(tmp_path) -> None:
    content = {"cat": ["whiskers"], "dog": "a wet nose"}
    (tmp_path / "looks.json").write_text(json.dumps(content))
    assert Descriptors.parse(str(tmp_path / "looks.json")) == Descriptors.parse(content)
