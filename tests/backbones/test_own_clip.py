"""CLIP's network and tokenizer of our own against open_clip's, on the same weights and texts; mini runs on them."""

from __future__ import annotations

import random

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from densevl.backbones.mini import SHA256, Mini, full_state, read_compact
from densevl.backbones.text import clip_tokenizer
from densevl.backbones.text.clip_tokenizer import ClipTokenizer
from densevl.backbones.towers.clip import CLIP
from densevl.errors import ModelError
from densevl.shipped import MINI, is_shipped, shipped_file
from densevl.vocabulary import templates

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}
TEXTS = {
    "empty": "",
    "plain": "a photo of a dog",
    "capitals-and-spaces": "  A\tPhoto\n of  THE dog ",
    "apostrophes": "it's the dogs' they'll I'D 'S",
    "long-s-is-an-s-where-case-is-ignored": "it'\u017f",
    "numbers-apart": "route 66, 3.14 \u00bd \u2082\u00b2 \u0664\u0665 \u2167",
    "accents": "gr\u00f6\u00dfe na\u00efve e\u0301",
    "a-wrong-encoding-is-mended": "gr\u00c3\u00b6\u00c3\u0178e",
    "entities-twice": "cats &amp;amp; dogs &lt;3 &amp;amp;amp;lt;",
    "marks-of-start-and-end": "a <start_of_text> b <END_OF_TEXT> c<end_of_text>",
    "scripts": "\u6771\u4eac \u0438\u0434\u0438 \u0939\u093f\u0928 \u0639\u0631\u0628\u064a \ud55c\uad6d\uc5b4",
    "emoji-of-several-signs": "\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1ee\U0001f1f8",
    "controls": "a\x00b\x07c\u200bd\ufeff\x1b[31mred",
    "wide-and-ligatures": "\uff24\uff2f\uff27 \ufb01sh",
    "underscores-and-signs": "snake_case --- !!?? $5.00 @home",
    "repeats": "aaaaaaaaaa hahahahaha !!!!!!!!!!!!!",
    "too-long-is-cut-and-ended": "one two three four five six seven eight nine ten " * 3,
}


@pytest.fixture(scope="module")
def theirs() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer(context_length=20)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_tokens_are_open_clips(theirs, text) -> None:
    ours = ClipTokenizer(20)
    assert torch.equal(ours([text, "x"]), theirs([text, "x"]))
    assert torch.equal(ours(text), theirs(text))


def test_tokens_of_any_signs_and_of_every_word_of_the_vocabulary_are_open_clips(theirs) -> None:
    ours, draw = ClipTokenizer(), random.Random(0)
    ranges = [(32, 127), (0, 127), (32, 0x250), (32, 0xD7FF), (0x1F000, 0x1FFFF)]
    texts = ["".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(16))) for _ in range(1000)]
    for text in [*texts, *list(theirs.encoder)[::20]]:
        assert ours.encode(text) == theirs.encode(text), repr(text)


def test_the_vocabulary_is_open_clips(theirs) -> None:
    tokens, ranks = clip_tokenizer.vocabulary()
    assert (tokens, ranks) == (theirs.encoder, theirs.bpe_ranks)


def test_an_open_clip_without_its_vocabulary_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr(clip_tokenizer, "VOCABULARY", "nowhere.gz")
    clip_tokenizer.vocabulary.cache_clear()
    with pytest.raises(ModelError, match="pip install --force-reinstall open_clip_torch"):
        ClipTokenizer()


@torch.no_grad()
def test_images_and_texts_are_those_of_open_clip_on_the_same_weights(theirs) -> None:
    stock = open_clip.CLIP(**CONFIG, cast_dtype=None).eval().requires_grad_(False)
    ours = CLIP(**CONFIG).eval().requires_grad_(False)
    for value in stock.parameters():
        value.copy_(torch.randn_like(value) * 0.2)
    ours.load_state_dict(stock.state_dict(), strict=True)
    pixels, tokens = torch.randn(2, 3, 32, 32), theirs([*TEXTS.values()])
    for unit in (False, True):
        assert (ours.encode_image(pixels, unit) - stock.encode_image(pixels, unit)).abs().max() <= 1e-6
        assert (ours.encode_text(tokens, unit) - stock.encode_text(tokens, unit)).abs().max() <= 1e-6


@pytest.mark.skipif(not is_shipped(MINI), reason="this checkout holds no mini")
@torch.no_grad()
def test_mini_is_what_open_clip_makes_of_its_weights() -> None:
    state, meta = read_compact(shipped_file(MINI, SHA256, "mini", "tools.mini.train"))
    stock = open_clip.CLIP(**meta["model_cfg"], cast_dtype=None).eval().requires_grad_(False)
    stock.load_state_dict(full_state(state, 49408), strict=True)
    mini, tokenizer = Mini(), open_clip.SimpleTokenizer(context_length=32)
    pixels, texts = torch.randn(2, 3, 96, 96), [f"a photo of a {word}" for word in ("dog", "xyzzy", "gr\u00f6\u00dfe")]
    assert (mini.encode_image(pixels) - stock.encode_image(pixels)).abs().max() <= 1e-6
    assert (mini.encode_text(texts) - stock.encode_text(tokenizer(texts))).abs().max() <= 1e-6
    transform = image_transform_v2(PreprocessCfg(size=96), is_train=False)
    for shape in ((96, 96, 3), (200, 133, 3), (131, 300, 3), (50, 77, 3), (97, 95, 3)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        assert (mini.preprocess(image) - transform(image)).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("name", "functions"),
    [("openai", open_clip.OPENAI_IMAGENET_TEMPLATES), ("simple", open_clip.SIMPLE_IMAGENET_TEMPLATES)],
)
def test_templates_are_open_clips(name, functions) -> None:
    assert [template.replace("{}", "dog") for template in templates.templates(name)] == [f("dog") for f in functions]
