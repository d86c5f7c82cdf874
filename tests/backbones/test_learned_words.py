"""Texts with vectors in place of words, on every kind of text tower, against the tower's own reading of the words."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch

from conftest import TINY, close, random_clip, wrap
from densevl.backbones import load_backbone
from densevl.backbones.text.learned import WordVectors
from densevl.errors import ModelError

NOUNS = ["tile", "slice of pizza", "cat"]


class Bare:
    """A tokenizer without a token at the start, as those of T5 are: words by number, an end, padding of ones."""

    def __init__(self, length: int = 20) -> None:
        self.length = length

    def __call__(self, texts: list[str]) -> torch.Tensor:
        rows = torch.ones(len(texts), self.length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            words = [2 + hash_of(word) for word in text.split()][: self.length - 1]
            row[: len(words) + 1] = torch.tensor([*words, 60])
        return rows


def hash_of(word: str) -> int:
    return sum(map(ord, word)) % 50


def tower(kind: str) -> tuple:
    torch.manual_seed(1)
    vision, text = TINY["vision_cfg"], TINY["text_cfg"]
    tokenizer = open_clip.SimpleTokenizer(context_length=20)
    if kind == "plain":
        return random_clip(), tokenizer
    if kind == "bidirectional":  # SigLIP's: nothing is masked, the last token is read
        own = {**text, "no_causal_mask": True, "pool_type": "last", "vocab_size": 64}
        return open_clip.CustomTextCLIP(24, vision, own).eval(), Bare()
    return open_clip.CustomTextCLIP(24, vision, text).eval(), tokenizer


KINDS = ("plain", "custom", "bidirectional")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("front", "back"), [("a photo of the", ""), ("", "in snow"), ("an old", "on a wall")])
def test_vectors_of_words_are_read_as_the_words_are(kind, front, back) -> None:
    model, tokenizer = tower(kind)
    words = WordVectors(model, tokenizer, 20, kind)
    vectors = torch.cat([words.of(front), words.of(back)])
    assert len(words.of(front)) == len(front.split())
    with torch.no_grad():
        found = words.encode(vectors[None], NOUNS, len(front.split()))
        close(found, model.encode_text(tokenizer([f"{front} {noun} {back}".strip() for noun in NOUNS])))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(kind) -> None:
    model, tokenizer = tower(kind)
    words = WordVectors(copy.deepcopy(model).double(), tokenizer, 20, kind)
    torch.manual_seed(0)
    start = torch.randn(1, 3, words.width, dtype=torch.float64)
    weights = torch.randn(len(NOUNS), 24, dtype=torch.float64)

    def value(x: torch.Tensor) -> torch.Tensor:
        return (weights * words.encode(x, NOUNS, 2)).sum()

    given = start.clone().requires_grad_(True)
    value(given).backward()
    step = 1e-6 * torch.randn_like(start)
    with torch.no_grad():
        slope = (value(start + step) - value(start - step)) / 2
    assert float((given.grad * step).sum()) == pytest.approx(float(slope), rel=1e-5)
    assert float(slope) != 0


def test_the_shipped_model_reads_them_too() -> None:
    mini = load_backbone("mini")
    vectors = mini.word_vectors("a photo of the large .")
    with torch.no_grad():
        found = mini.encode_learned(vectors[None], NOUNS, before=5)
    close(found, mini.encode_text([f"a photo of the large {noun}." for noun in NOUNS]))


def test_more_texts_than_share_a_pass_are_read_as_one_is(tiny) -> None:
    words = torch.randn(300, 2, tiny.word_width)
    nouns = [NOUNS[index % 3] for index in range(300)]
    found = tiny.encode_learned(words, nouns, before=1)
    close(found[299:], tiny.encode_learned(words[299:], nouns[299:], before=1))


def test_what_does_not_fit_is_refused_by_its_name(tiny) -> None:
    long = " ".join(["cat"] * 12)
    with pytest.raises(ModelError, match=r"'cat cat .*take at most 6 words, or a shorter name"):
        tiny.encode_learned(torch.zeros(1, 7, 16), ["dog", long])
    assert tiny.encode_learned(torch.zeros(1, 6, 16), ["dog", long]).shape == (2, 24)
    with pytest.raises(ModelError, match="is longer than the 20 tokens"):
        tiny.encode_learned(torch.zeros(1, 1, 16), [" ".join(["cat"] * 30)])


def test_a_text_side_without_words_is_refused(tiny) -> None:
    with pytest.raises(ModelError, match="text vectors in place of a text tower"):
        _ = tiny.with_words({"cat": torch.ones(24)}).word_width
    model = copy.copy(tiny._model)
    model._modules = {key: value for key, value in model._modules.items() if key != "token_embedding"}
    with pytest.raises(ModelError, match="no table of words"):
        _ = wrap(model).word_width
