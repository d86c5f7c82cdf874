"""`linear` is `F.linear` for whatever tensors that takes, however they lie, and whoever follows the operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from densevl.kernels import linear as kernel
from densevl.kernels.dispatch import KernelError
from densevl.kernels.linear import linear

COUNT, INPUTS, OUTPUTS = 6, 8, 10
X = {
    "plain": lambda: torch.randn(2, COUNT, INPUTS),
    "one token": lambda: torch.randn(INPUTS),
    "transposed": lambda: torch.randn(2, INPUTS, COUNT).mT,
    "every other number": lambda: torch.randn(COUNT, 2 * INPUTS)[:, ::2],
    "one number": lambda: torch.randn(1).expand(2, COUNT, INPUTS),
    "windows that overlap": lambda: torch.randn(COUNT + INPUTS - 1).unfold(0, INPUTS, 1),
    "of an odd address": lambda: torch.randn(COUNT * INPUTS + 1)[1:].view(COUNT, INPUTS),
    "negative": lambda: torch._neg_view(torch.randn(COUNT, INPUTS)),
}
WEIGHTS = {
    "plain": lambda: torch.randn(OUTPUTS, INPUTS),
    "transposed": lambda: torch.randn(INPUTS, OUTPUTS).T,
    "columns": lambda: torch.randn(OUTPUTS, 3 * INPUTS)[:, INPUTS : 2 * INPUTS],
    "every other row": lambda: torch.randn(2 * OUTPUTS, INPUTS)[::2],
    "every other column": lambda: torch.randn(OUTPUTS, 2 * INPUTS)[:, ::2],
    "one row": lambda: torch.randn(1, INPUTS).expand(OUTPUTS, INPUTS),
    "one column": lambda: torch.randn(OUTPUTS, 1).expand(OUTPUTS, INPUTS),
    "one number": lambda: torch.randn(1).expand(OUTPUTS, INPUTS),
    "windows that overlap": lambda: torch.randn(OUTPUTS + INPUTS - 1).unfold(0, INPUTS, 1),
    "sparse": lambda: torch.randn(OUTPUTS, INPUTS).relu().to_sparse_csr(),
    "negative": lambda: torch._neg_view(torch.randn(OUTPUTS, INPUTS)),
    "of one dimension": lambda: torch.randn(INPUTS),
}
BIASES = {
    "none": lambda: None,
    "plain": lambda: torch.randn(OUTPUTS),
    "one number": lambda: torch.zeros(1).expand(OUTPUTS),
    "every other number": lambda: torch.arange(2.0 * OUTPUTS)[::2],
    "of an odd address": lambda: torch.randn(OUTPUTS + 1)[1:],
    "(1,)": lambda: torch.randn(1),
    "(1, N)": lambda: torch.randn(1, OUTPUTS),
    "(M, 1)": lambda: torch.randn(COUNT, 1),
    "()": lambda: torch.tensor(2.0),
}


@pytest.fixture(autouse=True)
def onednn(monkeypatch) -> list[int]:
    """oneDNN for the smallest products too; how often it ran."""
    ran: list[int] = []
    own = kernel.onednn_linear
    if not (hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(kernel, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(kernel, "LEAST", 0)
    monkeypatch.setattr(kernel, "onednn_linear", lambda *given: ran.append(1) or own(*given))
    return ran


def _as_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    with torch.no_grad():
        try:
            want = F.linear(x, weight, bias)
        except RuntimeError:
            want = None
        if want is None:
            with pytest.raises((RuntimeError, KernelError)):
                linear(x, weight, bias)
        else:
            torch.testing.assert_close(linear(x, weight, bias), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_tensors_may_lie_as_they_like(weight, bias) -> None:
    torch.manual_seed(0)
    for make in X.values():
        _as_torch(make(), WEIGHTS[weight](), BIASES[bias]())


def test_what_lies_plainly_is_left_to_oneDNN(onednn) -> None:
    for weight in ("plain", "transposed", "columns", "every other row"):
        linear(X["plain"](), nn.Parameter(WEIGHTS[weight](), requires_grad=False), BIASES["plain"]())
    assert len(onednn) == 4


@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [
        ((COUNT, INPUTS), (OUTPUTS, INPUTS), (OUTPUTS - 1,)),
        ((COUNT, INPUTS), (OUTPUTS, INPUTS), (OUTPUTS + 1,)),
        ((COUNT, INPUTS), (OUTPUTS, INPUTS), (0,)),
        ((COUNT, INPUTS - 1), (OUTPUTS, INPUTS), None),
        ((COUNT, INPUTS), (2, OUTPUTS, INPUTS), None),
        ((COUNT, INPUTS), (), None),
        ((), (OUTPUTS, INPUTS), None),
    ],
)
def test_lengths_that_do_not_fit_are_refused(x, weight, bias) -> None:
    with pytest.raises(KernelError, match="has shape"):
        linear(torch.zeros(x), torch.zeros(weight), None if bias is None else torch.zeros(bias))


def _given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(COUNT, INPUTS), WEIGHTS["plain"](), torch.randn(OUTPUTS)


def test_oneDNN_switched_off_is_off(onednn) -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        linear(*_given())
    assert not onednn


@pytest.mark.parametrize("then", [None, "gelu", "silu"])
def test_transforms_of_functions_are_those_of_torch(onednn, then) -> None:
    x, weight, bias = _given()
    after: Any = {None: lambda y: y, "gelu": F.gelu, "silu": F.silu}[then]

    def ours(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return linear(x, weight, bias, then)

    def torchs(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return after(F.linear(x, weight, bias))

    biases, tangent = torch.randn(3, OUTPUTS), torch.randn(OUTPUTS)
    with torch.no_grad():
        torch.testing.assert_close(vmap(ours, (None, 0))(x, biases), vmap(torchs, (None, 0))(x, biases))
        torch.testing.assert_close(vmap(ours, (0, None))(x, bias), torchs(x, bias))
    given = (x, bias), (torch.zeros_like(x), tangent)
    for found, want in zip(jvp(ours, *given), jvp(torchs, *given), strict=True):
        torch.testing.assert_close(found, want)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.randn_like(x))
        found, want = (forward_ad.unpack_dual(of(dual, bias)).tangent for of in (ours, torchs))
        assert (found is None and want is None) or torch.equal(found, want)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.randn_like(x))
        found, want = (forward_ad.unpack_dual(of(dual, bias)).tangent for of in (ours, torchs))
        torch.testing.assert_close(found, want)
    assert not onednn


@pytest.mark.parametrize("settings", [{}, {"tracing_mode": "fake"}, {"pre_dispatch": True}], ids=str)
def test_a_graph_holds_torch_operators_alone(settings) -> None:
    with torch.no_grad():
        graph = make_fx(lambda *given: linear(*given, "gelu"), **settings)(*_given())
    assert "mkldnn" not in graph.code


def test_tensors_of_other_classes_keep_theirs(onednn) -> None:
    class Mine(torch.Tensor):
        pass

    x, weight, bias = _given()
    for given in ((x.as_subclass(Mine), weight, bias), (x, weight.as_subclass(Mine), bias)):
        assert type(linear(*given)) is Mine
    assert not onednn
    with FakeTensorMode() as mode:
        assert linear(mode.from_tensor(x), mode.from_tensor(weight)).shape == (COUNT, OUTPUTS)
    layer = nn.Linear(INPUTS, OUTPUTS).requires_grad_(False)
    new = {"weight": weight, "bias": bias}
    torch.testing.assert_close(functional_call(layer, new, (x,)), linear(x, weight, bias))
