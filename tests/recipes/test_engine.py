"""The engine against an independent float64 oracle, and the promises about the model it runs on."""

from __future__ import annotations

from dataclasses import replace

import open_clip
import pytest
import torch

from conftest import TINY, close, random_clip, wrap
from densevl.errors import RecipeError
from densevl.kernels import Gaussian
from densevl.recipes import Recipe, SecondStream, get, names
from densevl.recipes.blocks import view
from densevl.recipes.parts.attention import CosineAttention, Identity, SelfAttention
from oracle import Formula, Oracle
from recipe_hints import hints

BARE = {"skip": False, "mlp": False}
GEM = {"weights": (1 / 3,) * 3, "unit": True, "heat": "norms", "rounds": 1, "stream": 6, "rule": "antialias"}
FORMULAS = {
    # what each paper says, written out here: a wrong entry of the catalogue fails
    "vanilla": Formula(("qk",), rule="antialias"),
    "maskclip": Formula(("id",), rule="size"),
    "maskclip_value": Formula(("id",), **BARE),
    "clip_surgery": Formula(("vv",), stream=6, rule="bilinear"),
    "clip_feature_surgery": Formula(("vv",), stream=6, rule="bilinear"),
    "gem": Formula(("vv", "kk", "qq"), **GEM),
    "sclip": Formula(("qq", "kk")),
    "clearclip": Formula(("qq",), **BARE),
    "naclip": Formula(("kk",), std=5.0, **BARE),
    "cliptrase": Formula(("qq", "kk", "vv")),
    "declip": Formula(("qq",), rule="size", **BARE),
}
VARIANTS = [
    (Recipe("near", SelfAttention("qq", Gaussian(1.5))), Formula(("qq",), std=1.5)),
    (
        Recipe("weighted", 1.7 * (SelfAttention("qk", temperature=0.6) + SelfAttention("vv", temperature=0.6)) / 2),
        Formula(("qk", "vv"), weights=(0.85, 0.85), heat=0.6),
    ),
    (
        Recipe("value-beside-attention", Identity() + SelfAttention("kk"), residual=False),
        Formula(("id", "kk"), skip=False),
    ),
    (
        Recipe("cosine", CosineAttention("kk", 8.0, iterations=2)),
        Formula(("kk",), unit=True, heat=8.0, rounds=2),
    ),
    (
        Recipe("cosine-near", CosineAttention("vv", 3.0, 1, Gaussian(2.0))),
        Formula(("vv",), unit=True, heat=3.0, rounds=1, std=2.0),
    ),
    (Recipe("residual-only", SelfAttention("qq"), ffn=False), Formula(("qq",), mlp=False)),
    (Recipe("ffn-only", SelfAttention("qq"), residual=False), Formula(("qq",), skip=False)),
]


@pytest.mark.parametrize(
    ("recipe", "formula"),
    [*((get(name), formula) for name, formula in FORMULAS.items()), *VARIANTS],
    ids=[*FORMULAS, *(recipe.name for recipe, _ in VARIANTS)],
)
@pytest.mark.parametrize("size", [(32, 32), (56, 40)], ids=["trained-grid", "7x5-grid"])
def test_recipe_equals_the_formula(tiny, recipe, formula, size) -> None:
    pixels = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    oracle = Oracle(tiny._model.state_dict(), heads=2)
    dense = tiny.encode_dense(pixels, recipe)
    for image in range(len(pixels)):
        want = oracle.run(pixels[image], formula)
        got = torch.cat([dense.cls[image][None], dense.features[image].flatten(1).T])
        torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", names())
def test_the_model_is_bit_identical_after_use(name) -> None:
    model = random_clip(seed=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    pixels = torch.randn(1, 3, 48, 32)
    first = wrap(model).encode_dense(pixels, name, hints=hints(name, pixels)).features
    wrap(model).encode_dense(torch.randn(2, 3, 32, 32), "naclip")
    assert torch.equal(first, wrap(model).encode_dense(pixels, name, hints=hints(name, pixels)).features)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", names())
def test_an_image_does_not_depend_on_its_batch(tiny, name) -> None:
    pixels = torch.randn(5, 3, 40, 56)
    together = tiny.encode_dense(pixels, name, hints=hints(name, pixels)).features
    alone = [tiny.encode_dense(one[None], name, hints=hints(name, one[None])).features for one in pixels]
    alone = torch.cat(alone)
    close(together, alone)


def test_vanilla_equals_encode_image(tiny) -> None:
    pixels = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(tiny.encode_dense(pixels, "vanilla").cls, tiny.encode_image(pixels), atol=1e-5, rtol=0)
    torch.testing.assert_close(tiny.encode_image(pixels), tiny._model.encode_image(pixels), atol=0, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"no_ln_pre": True},
        {"ls_init_value": 0.5},
        {"block_type": "custom", "qk_norm": True},
        {"block_type": "custom", "scale_attn": True, "scale_heads": True, "scale_attn_inner": True},
        {"block_type": "custom", "scale_fc": True, "ls_init_value": 0.3},
    ],
    ids=lambda change: "+".join(change),
)
def test_vanilla_equals_encode_image_for_other_blocks(change) -> None:
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], **change}}
    backbone = wrap(random_clip(seed=5, config=config))
    pixels = torch.randn(2, 3, 32, 32)
    # A temperature of nearly 1 takes the block apart, so every part of the view is compared with the block itself.
    spelled = Recipe("spelled-out", SelfAttention("qk", temperature=1.0 + 1e-12))
    for recipe in ("vanilla", spelled):
        torch.testing.assert_close(
            backbone.encode_dense(pixels, recipe).cls, backbone.encode_image(pixels), atol=1e-5, rtol=0
        )


def test_attention_that_is_not_plain_is_refused_by_name() -> None:
    scaled = open_clip.transformer.CustomResidualAttentionBlock(32, 2, scale_cosine_attn=True)
    for block, kind in [(scaled, "CustomResidualAttentionBlock"), (torch.nn.Linear(2, 2), "Linear")]:
        with pytest.raises(RecipeError, match=f"type {kind}.* has no plain q, k, v"):
            view(block)


def test_a_dual_stream_deeper_than_the_tower_is_refused(tiny) -> None:
    deep = replace(get("gem"), blocks=SecondStream(8))
    with pytest.raises(RecipeError, match="rewires 8 blocks, the tower has 7"):
        tiny.encode_dense(torch.randn(1, 3, 32, 32), deep)
