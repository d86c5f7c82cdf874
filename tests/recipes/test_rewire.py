"""The engine against an independent float64 oracle, and the promises about the model it runs on."""

from __future__ import annotations

from dataclasses import replace

import open_clip
import pytest
import torch

from conftest import TINY, close, random_clip, wrap
from densevl.backbones.positions import resize_positions
from densevl.errors import RecipeError
from densevl.recipes import Gaussian, Recipe, get, names
from densevl.recipes.blocks import view
from oracle import Oracle
from recipe_hints import hints


def needs_more(name: str) -> bool:
    recipe = get(name)
    return recipe.reads_proxy or recipe.blocks > 1 or recipe.readout != "tokens"


# Recipes of the last block's own projections; the others have oracles of their own in test_parity.
OWN = [name for name in names() if all(isinstance(term, str) for term in get(name).terms) and not needs_more(name)]
VARIANTS = [
    *OWN,
    Recipe("no-cls-key", ("kk",), cls_key=False),
    Recipe("no-cls-key-bias", ("qq",), cls_key=False, bias=Gaussian(1.5), residual=False, ffn=False),
    Recipe("logit-sum", ("qq", "kk", "vv"), combine="logit-sum", ffn=False),
    Recipe("logit-sum-bias", ("qk", "kk"), combine="logit-sum", bias=Gaussian(2.0)),
    Recipe("mean-gain", ("qk", "vv"), combine="prob-mean", gain=1.7, temperature=0.6),
    Recipe("value-beside-attention", ("id", "kk"), residual=False),
    Recipe("cosine", ("kk",), metric="cosine", temperature=8.0, iterations=2),
    Recipe("residual-only", ("qq",), ffn=False),
    Recipe("ffn-only", ("qq",), residual=False),
]


def _as_recipe(variant: str | Recipe) -> Recipe:
    return get(variant)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v if isinstance(v, str) else v.name)
@pytest.mark.parametrize("size", [(32, 32), (56, 40)], ids=["trained-grid", "7x5-grid"])
def test_recipe_equals_the_formula(tiny, variant, size) -> None:
    recipe = _as_recipe(variant)
    pixels = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    grid = size[0] // 8, size[1] // 8
    visual = tiny._model.visual
    positions = resize_positions(visual.positional_embedding, visual.grid_size, grid, recipe.position_rule)
    oracle = Oracle(tiny._model, positions)
    dense = tiny.encode_dense(pixels, recipe)
    for image in range(len(pixels)):
        want = oracle.run(pixels[image], recipe, get("vanilla"))
        got = torch.cat([dense.cls[image][None], dense.features[image].flatten(1).T])
        torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", names())
def test_the_model_is_bit_identical_after_use(name) -> None:
    model = random_clip(seed=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    pixels = torch.randn(1, 3, 48, 32)
    first = wrap(model).encode_dense(pixels, name, **hints(name, pixels)).features
    wrap(model).encode_dense(torch.randn(2, 3, 32, 32), "naclip")
    assert torch.equal(first, wrap(model).encode_dense(pixels, name, **hints(name, pixels)).features)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", names())
def test_an_image_does_not_depend_on_its_batch(tiny, name) -> None:
    pixels = torch.randn(5, 3, 40, 56)
    together = tiny.encode_dense(pixels, name, **hints(name, pixels)).features
    alone = [tiny.encode_dense(one[None], name, **hints(name, one[None])).features for one in pixels]
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
    # "qk" written out takes the block apart, so every part of the view is compared with the block itself.
    spelled = Recipe("spelled-out", ("qk",), gain=1.0 + 1e-12)
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
    deep = replace(get("gem"), dual_layers=8)
    with pytest.raises(RecipeError, match="rewires 8 blocks, the tower has 7"):
        tiny.encode_dense(torch.randn(1, 3, 32, 32), deep)
