"""Blocks of 8-bit layers: each token for itself, whatever is beside it, by the steps in C and those in torch."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from conftest import random_clip, wrap
from densevl import load_backbone
from densevl.backbones.lowered import block, linears
from densevl.kernels.compiled import compiling
from densevl.kernels.compiled.steps import KINDS, Torch

FOUND = [pytest.param(made, id=made.name) for made in {id(s): s for s in (Torch(), compiling.steps())}.values()]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("made", FOUND)
def test_what_is_not_finite_never_becomes_a_number(made, bad) -> None:
    """A token whose activations broke down must not come out as one that looks like any other."""
    fc1, fc2 = nn.Linear(32, 64).requires_grad_(False), nn.Linear(64, 32).requires_grad_(False)
    x = torch.randn(3, 32)
    x[1, 5] = bad
    with compiling.use(made):
        for kind in KINDS:
            got = block.Int8Mlp(fc1, kind, fc2)(x)
            assert got.isfinite().all(1).tolist() == [True, False, True], kind
        got = linears.Int8Linear(fc1.weight, None)(x)
        normed = linears.Int8Linear(fc1.weight, None)(linears.lowered_norm(nn.LayerNorm(32).requires_grad_(False), x))
    assert got.isfinite().all(1).tolist() == [True, False, True]
    assert normed.isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("made", FOUND)
def test_a_window_alone_is_the_same_as_in_a_batch(made) -> None:
    """To the last bit: pictures must not change with the batch they happen to be in."""
    tower = wrap(random_clip()).at_precision("int8").tower
    x = torch.randn(64, 17, 32)  # more than run at once
    x[3] *= 1000
    with compiling.use(made), torch.no_grad():
        together = tower.run(0, x, (4, 4))
        for one in (0, 3, 34, 35, 63):
            assert torch.equal(tower.run(0, x[one : one + 1], (4, 4))[0], together[one])
        view = tower.view(1, (4, 4))
        assert torch.equal(view.ffn(x)[36:37], view.ffn(x[36:37]))


@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU(approximate="tanh")], ids=str)
def test_an_mlp_in_bytes_is_nearer_than_with_signs(activation) -> None:
    mlp = nn.Sequential(nn.Linear(64, 256), activation, nn.Linear(256, 64)).requires_grad_(False).eval()
    x = torch.randn(700, 64)  # two slices
    exact, got = mlp(x), block.int8_mlp(mlp)(x)
    first, second = (linears.Int8Linear(layer.weight, layer.bias) for layer in (mlp[0], mlp[2]))
    signed = second(activation(first(x)))
    assert (got - exact).norm() < 0.95 * (signed - exact).norm() < 0.04 * exact.norm()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.Mish()], ids=str)
def test_an_activation_that_may_fall_lower_keeps_its_sign(activation) -> None:
    assert block.int8_mlp(nn.Sequential(nn.Linear(4, 8), activation, nn.Linear(8, 4)).eval()) is None


@pytest.fixture(scope="module")
def eva(tmp_path_factory) -> tuple[nn.Module, str]:
    """A CLIP whose tower adds biases of its own to q, k and v, and the folder it is in."""
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": "linear"}
    config = {"embed_dim": 16, "vision_cfg": {**vision, "image_size": 224}, "text_cfg": text}
    model, folder = open_clip.CLIP(**config).eval(), tmp_path_factory.mktemp("eva")
    for each in model.visual.trunk.blocks:
        nn.init.normal_(each.attn.q_bias)
        nn.init.normal_(each.attn.v_bias)
    save_file({name: t.clone() for name, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    return model, str(folder)


@pytest.mark.parametrize(("precision", "bar"), [("float32", 1e-5), ("bfloat16", 0.02), ("int8", 0.06)])
def test_a_tower_with_biases_apart_is_loaded_at_any_precision(eva, precision, bar) -> None:
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        want = F.normalize(eva[0].encode_image(pixels), dim=-1)
    got = F.normalize(load_backbone(eva[1], precision=precision).encode_image(pixels), dim=-1)
    assert (got - want).norm() < bar * want.norm()
