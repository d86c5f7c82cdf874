"""Weights in a library's own order multiply as plain ones do, each token for itself."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import nn
from torch.nn import functional as F

from conftest import close
from densevl.backbones.lowered.packed import PackedLinear, packed_mlp
from densevl.kernels import packed
from densevl.kernels.compiled.steps import Torch
from densevl.kernels.dispatch import KernelError
from densevl.kernels.linear import through
from densevl.recipes.layers import through_mlp

KINDS = []
for kind in (packed._C, packed._OneDnn, packed._Mkl):
    try:
        kind(torch.ones(2, 2))
    except (OSError, AttributeError, RuntimeError):
        continue
    KINDS.append(kind)
AFTER = {
    None: lambda y: y,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
}


@pytest.mark.parametrize("then", AFTER)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 40, 7), (5, 33, 17), (70, 96, 200), (0, 4, 4)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_layer_is_the_formula_in_float64(kind, sizes, then) -> None:
    count, outputs, inputs = sizes
    x, weight, bias = torch.randn(count, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    want = AFTER[then](F.linear(x.double(), weight.double(), bias.double()))
    layer, given = kind(weight), x.clone()
    weight.zero_()  # it is a copy
    torch.testing.assert_close(layer.linear(x, bias, then).double(), want, rtol=1e-5, atol=5e-5)
    add = torch.randn(count, outputs)
    out = add.clone()
    torch.testing.assert_close(layer.linear(x, bias, then, add).double(), want + add, rtol=1e-5, atol=5e-5)
    assert torch.equal(add, out)
    assert layer.linear(x, bias, then, out, out).data_ptr() == out.data_ptr()
    torch.testing.assert_close(out.double(), want + add, rtol=1e-5, atol=5e-5)
    assert torch.equal(x, given)


@pytest.mark.skipif(packed._C not in KINDS, reason="no compiler")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_token_alone_is_bit_for_bit_that_among_others(threads) -> None:
    layer, x, bias = packed._C(torch.randn(150, 70)), torch.randn(40, 70), torch.randn(150)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = layer.linear(x, bias, "gelu")
        assert all(torch.equal(layer.linear(x[i : i + 1], bias, "gelu")[0], together[i]) for i in range(40))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("then", ["quick", "silu"])
def test_a_packed_block_is_the_block(then) -> None:
    activation = nn.SiLU() if then == "silu" else QuickGELU()
    mlp = nn.Sequential(nn.Linear(24, 96), activation, nn.Linear(96, 24)).requires_grad_(False).eval()
    x, made = torch.randn(2, 5, 24), packed_mlp(mlp)
    onto = x.clone()
    assert through_mlp(made, x, onto).data_ptr() == onto.data_ptr()
    close(onto, x + mlp(x))
    layer = PackedLinear(mlp[0].weight, mlp[0].bias)
    close(through(layer, x, torch.ones(2, 5, 96)), 1 + mlp[0](x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_multiplies_as_the_original_and_none_leaves_the_process_broken(kind) -> None:
    layer, x, bias = kind(torch.randn(20, 30)), torch.randn(4, 30), torch.randn(20)
    want = layer.linear(x, bias, None)
    twin = copy.deepcopy(layer)
    del layer
    assert torch.equal(twin.linear(x, bias, None), want)
    with pytest.raises((KernelError, RuntimeError, NotImplementedError)):  # never an address of another process
        pickle.loads(pickle.dumps(twin)).linear(x, bias, None)


def test_the_library_taken_is_one_that_is_right(monkeypatch) -> None:
    asked = packed._library.__wrapped__
    monkeypatch.setattr(packed, "is_faster", lambda *_: True)
    assert asked() is (KINDS or [None])[-1]
    monkeypatch.setattr(packed, "is_faster", lambda *_: False)
    assert asked() is (KINDS or [None])[0]
    monkeypatch.setattr(packed, "steps", Torch)

    def wrong(self: object, x: torch.Tensor, bias: torch.Tensor, then: str | None) -> torch.Tensor:
        return x.new_zeros(len(x), len(bias))

    def gone() -> None:
        raise OSError

    monkeypatch.setattr(packed, "_mkl", gone)
    assert asked() is (packed._OneDnn if packed._OneDnn in KINDS else None)
    monkeypatch.setattr(packed._OneDnn, "linear", wrong)
    assert asked() is None


def test_without_a_library_the_way_out_is_named(monkeypatch) -> None:
    monkeypatch.setattr(packed, "_library", lambda: None)
    with pytest.raises(KernelError, match="take precision 'float32'"):
        packed.pack(torch.ones(2, 2))
    with pytest.raises(KernelError, match="has shape"):
        packed.pack(torch.ones(2))
