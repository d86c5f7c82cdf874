"""R13: each attention equals its formula, a slow loop in float64 over heads and tokens, and leaves the model as it was.

Here on a small tower; `recipes/test_parity.py` has every recipe of the catalogue against a reading of its authors'.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from conftest import TINY, close, random_clip, wrap

GRID, PATCH, WIDTH, HEADS = (7, 5), 8, 32, 2
VISION = {"image_size": (56, 40), "layers": 2, "width": WIDTH, "head_width": WIDTH // HEADS, "patch_size": PATCH}
#: What is compared in the last block, and whether its residual and its MLP are kept.
VARIANTS = {
    "vanilla": (("qk",), True),
    "maskclip_value": ((), False),
    "sclip": (("qq", "kk"), True),
    "clearclip": (("qq",), False),
    "naclip": (("kk",), False),
}


@pytest.fixture(scope="module")
def clip():
    return wrap(random_clip(config={**TINY, "vision_cfg": VISION}))


def norm(x: Tensor, name: str, w: dict[str, Tensor]) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def bias_between(one: int, other: int) -> float:
    """NACLIP's: a Gaussian of 5 patches between two patches; nothing to and from CLS."""
    if not one or not other:
        return 0.0
    places = [divmod(token - 1, GRID[1]) for token in (one, other)]
    return math.exp(-sum((a - b) ** 2 for a, b in zip(*places, strict=True)) / (2 * 5.0**2))


def attended(u: Tensor, block: str, pairs: tuple[str, ...], near: bool, w: dict[str, Tensor]) -> Tensor:
    """Attention of tokens u (N, D) after LN1, weight by weight."""
    projected = u @ w[f"{block}attn.in_proj_weight"].T + w[f"{block}attn.in_proj_bias"]
    parts = dict(zip("qkv", projected.chunk(3, -1), strict=True))
    joined, wide = torch.zeros_like(u), WIDTH // HEADS
    for head in range(HEADS):
        own = {name: part[:, head * wide : (head + 1) * wide] for name, part in parts.items()}
        for row in range(len(u)):
            weights = torch.zeros(len(u), dtype=torch.float64)
            for first, second in pairs:
                logits = [
                    float(own[first][row] @ own[second][column]) / math.sqrt(wide) + near * bias_between(row, column)
                    for column in range(len(u))
                ]
                powers = [math.exp(logit - max(logits)) for logit in logits]
                weights += torch.tensor(powers, dtype=torch.float64) / sum(powers)
            if not pairs:
                weights[row] = 1.0
            joined[row, head * wide : (head + 1) * wide] = weights @ own["v"]
    return joined @ w[f"{block}attn.out_proj.weight"].T + w[f"{block}attn.out_proj.bias"]


def mlp(x: Tensor, block: str, w: dict[str, Tensor]) -> Tensor:
    hidden = norm(x, f"{block}ln_2", w) @ w[f"{block}mlp.c_fc.weight"].T + w[f"{block}mlp.c_fc.bias"]
    return hidden * torch.sigmoid(1.702 * hidden) @ w[f"{block}mlp.c_proj.weight"].T + w[f"{block}mlp.c_proj.bias"]


def written_out(pixels: Tensor, variant: str, w: dict[str, Tensor]) -> Tensor:
    """All tokens of one image (3, H, W) in the joint space, CLS first."""
    pairs, kept = VARIANTS[variant]
    patches = [
        pixels[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH].flatten()
        for y in range(GRID[0])
        for x in range(GRID[1])
    ]
    tokens = [w["class_embedding"], *(w["conv1.weight"].flatten(1) @ patch for patch in patches)]
    x = norm(torch.stack(tokens) + w["positional_embedding"], "ln_pre", w)
    first, last = "transformer.resblocks.0.", "transformer.resblocks.1."
    x = x + attended(norm(x, f"{first}ln_1", w), first, ("qk",), False, w)
    x = x + mlp(x, first, w)
    y = attended(norm(x, f"{last}ln_1", w), last, pairs, variant == "naclip", w)
    if kept:
        y = x + y
        y = y + mlp(y, last, w)
    return norm(y, "ln_post", w) @ w["proj"]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_equals_its_formula(clip, variant: str, batch: int) -> None:
    w = {key: value.double() for key, value in clip._model.visual.state_dict().items()}
    pixels = torch.randn(batch, 3, GRID[0] * PATCH, GRID[1] * PATCH)
    got = clip.encode_dense(pixels, variant).features
    for image in range(batch if batch == 1 else 2):
        want = written_out(pixels[image].double(), variant, w)[1:]
        close(got[image].flatten(1).T, want)


def test_vanilla_is_the_model_and_no_variant_changes_it(clip) -> None:
    pixels = torch.randn(2, 3, GRID[0] * PATCH, GRID[1] * PATCH)
    before = {key: value.clone() for key, value in clip._model.state_dict().items()}
    image = clip._model.encode_image(pixels)
    for variant in VARIANTS:
        dense = clip.encode_dense(pixels, variant)
        if variant == "vanilla":
            close(dense.cls, image)
    assert torch.equal(clip._model.encode_image(pixels), image)
    after = clip._model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
