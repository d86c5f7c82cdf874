"""Head "prompt" with deep words: hidden states of the text tower's first blocks are learned too."""

from __future__ import annotations

import copy

import pytest
import torch
from test_learned_prompts import LABELS, STRINGS, TEMPLATES, draw
from torch.nn import functional as F

from conftest import close, random_clip, wrap
from densevl.errors import ModelError, OptionError
from densevl.fewshot import build, restore
from densevl.fewshot.prompts.contexts import Contexts, Spoken, descend, joined, unit_prompts
from densevl.fewshot.words import class_rows
from densevl.vocabulary import Background
from densevl.vocabulary.text_classifier import TextClassifier


@pytest.fixture(scope="module")
def rows(tiny) -> torch.Tensor:
    """Rows of the three classes and of the background word."""
    text = TextClassifier(tiny, TEMPLATES, use_cache=False).encode(LABELS, Background(words=("sky",)))
    return class_rows(text, 3)


def made(tiny, **settings):
    own = {"steps": 3, "contexts": 2, "folds": 1, "rate": 0.3, "deep": 2, **settings}
    return build("prompt", tower=tiny, templates=TEMPLATES, **own)


def by_hand(model, tokenizer, words_nW, noun: str, depth: int) -> torch.Tensor:
    """A text of n words and a noun through open_clip's own modules, block after block; the words are replaced in the
    first `depth` of them."""
    width, count = model.token_embedding.weight.shape[1], len(words_nW)
    tokens = tokenizer([" ".join(["x"] * count) + f" {noun}"])
    x = model.token_embedding(tokens)
    x[0, 1 : 1 + count] = words_nW[:, :width]
    x = x + model.positional_embedding
    for number, block in enumerate(model.transformer.resblocks):
        if 0 < number < depth:
            x[0, 1 : 1 + count] = words_nW[:, number * width : (number + 1) * width]
        x = block(x, attn_mask=model.attn_mask)
    return model.ln_final(x)[0, tokens.argmax()] @ model.text_projection


@pytest.mark.parametrize("depth", [1, 2])
def test_deep_words_replace_what_stands_in_each_block(depth) -> None:
    model = copy.deepcopy(random_clip()).double()
    tower = wrap(model, "double")
    depth = min(depth, len(model.transformer.resblocks))
    torch.manual_seed(0)
    words = torch.randn(3, depth * tower.word_width, dtype=torch.float64)
    found = tower.encode_learned(words[None], ["cat", "old bus"])
    with torch.no_grad():
        close(found[0], by_hand(model, tower.tokenizer, words, "cat", depth))
        close(found[1], by_hand(model, tower.tokenizer, words, "old bus", depth))


def test_words_made_deep_read_the_same(tiny) -> None:
    start = Contexts.of_templates(tiny, TEMPLATES, 3, 4, 0)
    deep = start.deep(tiny, 2)
    assert [one.shape[1] for one in deep.words] == [2 * tiny.word_width] * 3
    with torch.no_grad():
        close(unit_prompts(tiny, deep, ["cat", "old bus"]), unit_prompts(tiny, start, ["cat", "old bus"]))
    assert start.deep(tiny, 1) is start


def test_every_block_is_learned_and_the_templates_serve_other_pipelines(tiny, rows, tmp_path) -> None:
    head = made(tiny).fit(*draw(2), rows, scale=20.0, strings=STRINGS)
    width, start = tiny.word_width, Contexts.of_templates(tiny, TEMPLATES, 2, 4, 0).deep(tiny, 2)
    for template, begun in zip(head.templates, start.words, strict=True):
        moved = (torch.from_numpy(template.words) - begun)[: template.before]
        for part in moved.split(width, dim=1):
            assert float(part.abs().mean()) > 1e-3
    text = TextClassifier(tiny, head.templates, use_cache=False).encode(LABELS, Background(words=("sky",)))
    close(class_rows(text, 3), head.text)
    again = restore(*head.state())
    again.attach(tiny, TEMPLATES)
    assert torch.equal(again.words([["boat"]]), head.words([["boat"]]))
    flat = made(tiny, deep=1).fit(*draw(2), rows, scale=20.0, strings=STRINGS)
    assert not torch.allclose(head.text, flat.text, atol=1e-3)


def test_the_gradient_is_that_of_finite_differences(rows) -> None:
    tower = wrap(copy.deepcopy(random_clip()).double(), "double")
    features, labels = draw(2)
    unit, spoken = F.normalize(features.double(), dim=1), Spoken.of(STRINGS[:3])
    torch.manual_seed(1)
    start = torch.randn(3, 2 * tower.word_width, dtype=torch.float64)
    step = 1e-6 * torch.randn_like(start)

    def loss(said: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(20 * unit @ said.mT, labels)

    def at(words: torch.Tensor) -> float:
        with torch.no_grad():
            said = joined(unit_prompts(tower, Contexts([words], [2]), spoken.strings), spoken.member)
            return float(loss(said))

    own = Contexts([start.clone().requires_grad_(True)], [2])
    descend(tower, own, spoken, loss)
    assert float((own.words[0].grad * step).sum()) == pytest.approx((at(start + step) - at(start - step)) / 2, rel=1e-4)
    assert not own.words[0].grad[2, tower.word_width :].any(), "behind the noun a word is not deep"


def test_what_cannot_be_deep_is_refused_before_the_first_example(tiny) -> None:
    with pytest.raises(OptionError, match="deep is a whole number"):
        made(tiny, deep=0)
    with pytest.raises(OptionError, match="leave one of them out"):
        made(tiny, conditioned=True)
    with pytest.raises(ModelError, match="at most 2 blocks"):
        made(tiny, deep=40)
    with pytest.raises(ModelError, match=r"1\.5 blocks deep"):
        tiny.encode_learned(torch.zeros(1, 2, tiny.word_width * 3 // 2), "cat")
    two = wrap(copy.deepcopy(random_clip()), "both ways")
    two.model.attn_mask = None
    with pytest.raises(ModelError, match="takes no deep words"):
        made(two)
