"""Text is encoded once per model, templates and string, and the ensemble is CLIP's."""

from __future__ import annotations

import sqlite3

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from conftest import TINY, close, random_clip, wrap
from densevl.errors import OptionError
from densevl.vocabulary import Background, Descriptors, LabelSet, TextOptions, text_cache
from densevl.vocabulary.template_weights import image_classifier
from densevl.vocabulary.text_classifier import TextClassifier


class Counting:
    """Counts the prompts a backbone encodes."""

    def __init__(self, backbone, monkeypatch) -> None:
        self.prompts: list[str] = []
        encode = backbone.encode_text

        def counted(texts):
            self.prompts += list(texts)
            return encode(texts)

        monkeypatch.setattr(backbone, "encode_text", counted)


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEVL_CACHE", str(tmp_path / "cache"))
    return wrap(random_clip(seed=1))


def test_the_ensemble_is_the_normalised_mean_of_normalised_prompts(backbone) -> None:
    got = TextClassifier(backbone, "simple").encode(LabelSet.parse("cat,dog")).vectors
    tokenizer = open_clip.SimpleTokenizer(context_length=20)
    for row, word in zip(got, ("cat", "dog"), strict=True):
        prompts = tokenizer([template(word) for template in open_clip.SIMPLE_IMAGENET_TEMPLATES])
        unit = F.normalize(backbone._model.encode_text(prompts), dim=-1)
        close(row, F.normalize(unit.mean(0), dim=-1))


def test_a_string_is_encoded_once_and_never_again(backbone, monkeypatch) -> None:
    counting = Counting(backbone, monkeypatch)
    first = TextClassifier(backbone, "photo").encode(LabelSet.parse("cat,dog"))
    assert counting.prompts == ["a photo of a cat.", "a photo of a dog."]
    again = TextClassifier(backbone, "photo").encode(LabelSet.parse("dog,bird,cat"))
    assert counting.prompts[2:] == ["a photo of a bird."]
    assert torch.equal(again.vectors[[2, 0]], first.vectors)


def test_a_large_vocabulary_is_encoded_in_parts_and_kept_as_it_goes(backbone, monkeypatch) -> None:
    labels = LabelSet.parse([f"thing {i}" for i in range(23)])
    want = TextClassifier(backbone, "photo", use_cache=False).encode(labels).vectors
    monkeypatch.setattr("densevl.vocabulary.text_classifier.PROMPTS_AT_ONCE", 5)
    encode, calls = backbone.encode_text, []

    def breaks_down(texts):
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(texts)

    monkeypatch.setattr(backbone, "encode_text", breaks_down)
    with pytest.raises(KeyboardInterrupt):
        TextClassifier(backbone, "photo").encode(labels)
    close(TextClassifier(backbone, "photo").encode(labels).vectors, want)
    assert calls == [5, 5, 5, 5, 5, 3]  # the ten that were done are not done again


def test_the_cache_tells_models_and_templates_apart(backbone, monkeypatch) -> None:
    labels = LabelSet.parse("cat")
    first = TextClassifier(backbone, "photo").encode(labels).vectors
    other_model = wrap(random_clip(seed=2))
    assert other_model.text_fingerprint != backbone.text_fingerprint
    assert wrap(random_clip(seed=1)).text_fingerprint == backbone.text_fingerprint
    assert not torch.allclose(TextClassifier(other_model, "photo").encode(labels).vectors, first)
    assert not torch.allclose(TextClassifier(backbone, "name").encode(labels).vectors, first)


def test_a_fine_tuned_text_tower_is_another_model() -> None:
    model = random_clip(seed=1)
    model.ln_final.bias[0] += 1e-3
    assert wrap(model).text_fingerprint != wrap(random_clip(seed=1)).text_fingerprint


@pytest.mark.parametrize("change", [{"quick_gelu": False}, {"text_cfg": {**TINY["text_cfg"], "heads": 1}}])
def test_equal_weights_under_another_activation_or_heads_are_another_model(change) -> None:
    weights = random_clip(seed=1)
    other = random_clip(seed=1, config={**TINY, **change})
    other.load_state_dict(weights.state_dict())
    assert wrap(other).text_fingerprint != wrap(weights).text_fingerprint


@pytest.mark.parametrize("damage", ["garbage", "read-only folder", "2-byte vector", "8-byte vector"])
def test_a_broken_cache_costs_time_not_the_result(backbone, tmp_path, monkeypatch, damage, caplog) -> None:
    labels = LabelSet.parse("cat,dog")
    want = TextClassifier(backbone, "photo", use_cache=False).encode(labels).vectors
    path = tmp_path / "cache" / "text.sqlite"
    if damage == "garbage":
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"this is not a database" * 100)
    elif damage == "read-only folder":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("DENSEVL_CACHE", str(tmp_path / "file" / "below"))
    else:
        TextClassifier(backbone, "photo").encode(labels)
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE embedding SET vector = zeroblob(?)", (int(damage[0]),))
    got = TextClassifier(backbone, "photo").encode(labels).vectors
    assert torch.equal(got, want)


def test_background_words_and_unknown_are_classless(backbone, monkeypatch) -> None:
    policy = Background(words=("sky", "cat"), unknown=True)
    monkeypatch.setattr(backbone, "unknown", lambda text: text.mean(0))
    got = TextClassifier(backbone, "photo").encode(LabelSet.parse("cat|kitten,dog"), policy)
    assert got.queries == ("cat", "kitten", "dog", "sky", "unknown")
    assert got.classes.tolist() == [0, 0, 1, -1, -1]


def test_negatives_are_classless_and_named_once(backbone) -> None:
    policy = Background(words=("toy dog", "sky", "sky"))
    got = TextClassifier(backbone, "photo").encode(LabelSet.parse("dog|not:toy dog"), policy)
    assert got.queries == ("dog", "toy dog", "sky")
    assert got.classes.tolist() == [0, -1, -1]


def test_a_text_longer_than_the_context_has_the_mean_of_its_windows(backbone, monkeypatch) -> None:
    text = " ".join(f"word{chr(97 + i)} number" for i in range(20))
    monkeypatch.setattr(backbone, "context_length", TINY["text_cfg"]["context_length"], raising=False)
    counting = Counting(backbone, monkeypatch)
    got = TextClassifier(backbone, "photo").encode(LabelSet.parse([text, "cat"])).vectors
    prompts = counting.prompts[:-1]
    assert len(prompts) > 5
    assert counting.prompts[-1] == "a photo of a cat."
    assert max(len(open_clip.SimpleTokenizer().encode(prompt)) for prompt in prompts) <= 18
    unit = F.normalize(backbone.encode_text(prompts), dim=-1)
    close(got[0], F.normalize(unit.mean(0), dim=-1))
    calls = len(counting.prompts)
    assert torch.equal(TextClassifier(backbone, "photo").encode(LabelSet.parse([text])).vectors[0], got[0])
    assert len(counting.prompts) == calls  # cached like any other


def test_equal_template_weights_are_the_ensemble(backbone) -> None:
    labels = LabelSet.parse("cat,dog|puppy")
    plain = TextClassifier(backbone, "simple").encode(labels)
    kept = TextClassifier(backbone, "simple", TextOptions(template_weights="image")).encode(labels)
    assert kept.prompts is not None
    assert kept.prompts.shape == (7, 3, backbone.embed_dim)
    close(kept.vectors, plain.vectors)
    got = image_classifier(kept.prompts, torch.randn(backbone.embed_dim), entropy=1.0)
    close(got, plain.vectors)


def test_too_many_prompts_to_keep_are_refused(backbone, monkeypatch) -> None:
    monkeypatch.setattr("densevl.vocabulary.text_classifier.PROMPTS_KEPT", 100)
    with pytest.raises(OptionError, match="take fewer templates or labels"):
        TextClassifier(backbone, "simple", TextOptions(template_weights="image")).encode(LabelSet.parse("cat"))


@pytest.mark.parametrize("options", [{"template_weights": "image"}, {"parents": "image"}], ids=str)
def test_what_depends_on_the_image_refuses_a_row_without_words(backbone, monkeypatch, options) -> None:
    monkeypatch.setattr(backbone, "unknown", lambda text: text.mean(0))
    with pytest.raises(OptionError, match="no words"):
        TextClassifier(backbone, "photo", TextOptions(**options)).encode(
            LabelSet.parse("cat"), Background(unknown=True)
        )


@pytest.mark.parametrize(
    "options",
    [
        {"template_weights": "imgae"},
        {"parents": "pixels"},
        {"template_weights": "image", "descriptors": Descriptors.parse({"cat": "fur"})},
    ],
    ids=str,
)
def test_impossible_options_say_why(options) -> None:
    with pytest.raises(OptionError) as caught:
        TextOptions(**options)
    assert "\n" not in str(caught.value)


def test_a_cache_that_has_grown_too_large_begins_anew(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(text_cache, "MOST", 100_000)
    path = tmp_path / "text.sqlite"
    cache = text_cache.TextCache("model", ["a {}"], path)
    for number in range(400):
        cache.put({f"label {number}": np.full(256, number, np.float32)})
        assert cache.get([f"label {number}"])[f"label {number}"][0] == number
    assert path.stat().st_size < 200_000
    assert cache.get(["label 0"]) == {}
    assert cache.get(["label 398"])
