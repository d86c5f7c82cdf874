"""Weights in a library's own order multiply as plain ones do, each token for itself."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

from densevl.kernels import packed
from densevl.kernels.dispatch import KernelError

KINDS = []
for kind in (packed._OneDnn, packed._Mkl):
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
    assert torch.equal(x, given)


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
    assert asked() is (packed._Mkl if packed._Mkl in KINDS else (KINDS or [None])[0])

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
