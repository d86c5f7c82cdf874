"""Lowered precision: the arithmetic is what it says, every tower runs with it, and the model stays as it was."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import cache

import pytest
import test_towers
import torch
from torch.nn import functional as F

from conftest import close, random_clip, wrap
from densevl import Segmenter
from densevl.backbones import Backbone, precision
from densevl.backbones.lowered import linears
from densevl.backbones.lowered.linears import BFloat16Linear, Int8Linear
from densevl.backbones.lowered.packed import PackedLinear
from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.backbones.precision import PRECISIONS
from densevl.backbones.projected.projection import projection_of, with_projection
from densevl.errors import ModelError, OptionError

LOWERED = [name for name in PRECISIONS if name != "float32"]
LIMIT = {"int8": 0.12, "bfloat16": 0.04, "float16": 0.006, "float32-packed": 2e-5}
"""Relative error of features of these small towers, whose widths of 32 average little away."""


def _by_hand(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, half: int) -> torch.Tensor:
    """The rounded product in float64: whole numbers times the two scales."""
    top = half - 1
    weight_step = weight.double().abs().amax(1) / 127
    step = x.double().abs().amax(-1, keepdim=True) / top
    whole = ((x.double() / step + half + 0.5).floor() - half) @ (weight.double() / weight_step[:, None]).round().T
    return (whole * weight_step * step + bias.double()).float()


@pytest.mark.parametrize("bits", [None, 7])
@pytest.mark.parametrize("shape", [(1, 8), (3, 5, 24), (2, 197, 64)])
def test_int8_is_the_rounded_product(bits, shape) -> None:
    x, weight, bias = torch.randn(shape) * 3, torch.randn(40, shape[-1]), torch.randn(40)
    got = Int8Linear(weight, bias, bits)(x)
    assert got.shape == (*shape[:-1], 40)
    # A value within rounding of a half may fall to either side: one step of one input.
    half = 2 ** ((bits or linears._exact_bits()) - 1)
    wanted = _by_hand(x, weight, bias, half)
    step = x.abs().amax() / (half - 1) * weight.abs().amax()
    assert (got - wanted).abs().max() < 1.01 * step
    assert ((got - wanted).abs() > 1e-4).float().mean() < 0.05
    exact = F.linear(x, weight, bias)
    assert (got - exact).norm() / exact.norm() < (0.015 if half == 128 else 0.03)


EXTREMES = """
import torch
from densevl.backbones.lowered.linears import Int8Linear
x, weight = torch.full((3, 96), 2.0), torch.full((40, 96), 0.5)  # every byte the largest one: any saturation shows
weight[1::2] *= -1
print(float((Int8Linear(weight, None)(x) / (x @ weight.T) - 1).abs().max()))
"""


@pytest.mark.parametrize("isa", ["AVX2", "SSE41"])
def test_int8_is_exact_whatever_onednn_is_told_to_use(isa) -> None:
    """The CPU may have instructions that add products exactly (VNNI) and oneDNN be told to leave them."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", EXTREMES], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1e-5


@pytest.mark.parametrize("make", [Int8Linear, BFloat16Linear])
def test_a_token_is_rounded_for_itself(make) -> None:
    torch.manual_seed(0)
    layer, x = make(torch.randn(16, 32), torch.randn(16)), torch.randn(5, 32)
    outlier = torch.cat([x, 1e6 * torch.randn(1, 32)])
    close(layer(outlier)[:5], layer(x))


@pytest.mark.parametrize("make", [Int8Linear, BFloat16Linear])
@pytest.mark.parametrize("bias", [True, False])
def test_zeros_and_no_bias_stay_finite(make, bias) -> None:
    given = torch.randn(4) if bias else None
    layer = make(torch.zeros(4, 8), given)
    assert torch.equal(layer(torch.zeros(2, 8)), torch.zeros(2, 4) if given is None else layer(torch.ones(2, 8)))


@cache
def tower(name: str) -> OpenClipBackbone:
    """Made once for all precisions: to lower a model leaves it as it is, which is tested."""
    return test_towers._build(name)


@pytest.mark.parametrize("lowered", LOWERED)
@pytest.mark.parametrize("name", test_towers.TAKEN_APART)
def test_every_tower_of_blocks_runs_lowered(name, lowered) -> None:
    backbone = tower(name)
    pixels = test_towers._pixels(backbone)
    before = copy.deepcopy(backbone._model.state_dict())
    low = backbone.at_precision(lowered)
    for recipe in ("vanilla", "clearclip"):
        exact, got = (b.encode_dense(pixels, recipe).features for b in (backbone, low))
        error = (got - exact).norm() / exact.norm()
        assert error < LIMIT[lowered] * (2 if recipe == "clearclip" else 1), recipe
        assert error > 0 or lowered == "float32-packed", recipe
    assert torch.equal(low.encode_image(pixels), backbone.encode_image(pixels))
    after = backbone._model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    held = (Int8Linear, BFloat16Linear, PackedLinear)
    assert not any(isinstance(module, held) for module in backbone._model.modules())
    assert any(isinstance(part, held) for module in low.tower._modules for part in module.modules())


def test_the_batch_does_not_change_int8() -> None:
    low = wrap(random_clip()).at_precision("int8")
    pixels = torch.randn(3, 3, 32, 32)
    together = low.encode_dense(pixels).features
    apart = torch.cat([low.encode_dense(one[None]).features for one in pixels])
    torch.testing.assert_close(together, apart, atol=2e-3, rtol=0)


def test_going_back_gives_the_trained_tower() -> None:
    backbone = wrap(random_clip())
    low = backbone.at_precision("int8")
    assert low.precision == "int8"
    assert low.at_precision("int8") is low
    assert backbone.at_precision("float32") is backbone
    assert low.at_precision("float32").tower is backbone.tower
    assert low.at_precision("bfloat16").tower.trained is backbone.tower
    assert low.text_fingerprint == backbone.text_fingerprint


def test_weights_are_shared_not_copied() -> None:
    backbone = wrap(random_clip())
    low = backbone.at_precision("bfloat16")
    own = {tensor.data_ptr() for tensor in backbone._model.parameters()}
    kept = [p.data_ptr() for module in low.tower._modules for p in module.parameters()]
    assert kept
    assert set(kept) <= own


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: wrap(random_clip()).at_precision("int4"), "'int4'.*int8, bfloat16"),
        (lambda: test_towers._build("ResNet").at_precision("int8"), "runs in float32 only"),
        (lambda: test_towers._build("relative positions").at_precision("int8"), "runs in float32 only"),
        (lambda: precision.check("int8", torch.device("cuda")), "for CPUs.*bfloat16"),
        (lambda: precision.check("float32-packed", torch.device("cuda")), "for CPUs.*take 'float32' there"),
        (lambda: Segmenter("mini", precision="in8"), "closest: int8"),
        (lambda: Backbone.at_precision(wrap(random_clip(), "other"), "int8"), "'other' runs in float32 only"),
    ],
)
def test_a_precision_that_cannot_run_is_refused(make, said) -> None:
    with pytest.raises((ModelError, OptionError), match=said):
        make()


def test_the_segmenter_reports_its_precision() -> None:
    segment = Segmenter(wrap(random_clip()), templates="name", precision="int8")
    result = segment(torch.zeros(3, 40, 40), ["a", "b"])
    assert result.meta["precision"] == "int8"


def test_another_projection_keeps_the_precision() -> None:
    low = wrap(random_clip()).at_precision("int8")
    made = with_projection(low, 2 * projection_of(low))
    assert made.precision == "int8"
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(made.encode_dense(pixels).features, 2 * low.encode_dense(pixels).features)
    torch.testing.assert_close(made.encode_image(pixels), 2 * low.encode_image(pixels))
