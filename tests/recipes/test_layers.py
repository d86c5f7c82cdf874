"""Linear layers and MLPs give what their modules give, whichever library multiplies, and leave the modules alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import open_clip
import pytest
import torch
from timm.layers import GELU, GELUTanh, Mlp, QuickGELU, SwiGLU
from torch import nn
from torch.nn import functional as F

from conftest import random_clip, wrap
from densevl.kernels import linear as kernel
from densevl.kernels import timing, use
from densevl.kernels.linear import linear, through
from densevl.recipes import layers
from densevl.recipes.blocks import view, with_ffn
from densevl.recipes.layers import mlp_of, through_mlp

ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
FUNCTIONS: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


@pytest.fixture(params=["oneDNN", "MKL"])
def library(request, monkeypatch) -> str:
    """Both libraries, for the smallest products too."""
    if request.param == "oneDNN" and not ONEDNN:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(kernel, "onednn_is_faster", lambda: request.param == "oneDNN")
    monkeypatch.setattr(kernel, "LEAST", 0)
    return request.param


def sequential(activation: nn.Module, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(24, 96), activation, *more, nn.Linear(96, 24)).eval()


def timm_mlp(activation: type[nn.Module], **settings: object) -> nn.Module:
    return Mlp(24, 96, act_layer=activation, **settings).eval()


MLPS = {
    "QuickGELU of open_clip": (lambda: sequential(open_clip.transformer.QuickGELU()), "quick"),
    "QuickGELU of timm": (lambda: timm_mlp(QuickGELU), "quick"),
    "GELU of torch": (lambda: sequential(nn.GELU()), "gelu"),
    "GELU of timm": (lambda: timm_mlp(GELU, drop=0.5), "gelu"),
    "tanh of torch": (lambda: sequential(nn.GELU(approximate="tanh")), "gelu_tanh"),
    "tanh of timm": (lambda: timm_mlp(GELUTanh), "gelu_tanh"),
    "SiLU without biases": (lambda: timm_mlp(nn.SiLU, bias=False), "silu"),
    "QuickGELU without biases": (lambda: timm_mlp(QuickGELU, bias=False), "quick"),
    "another activation": (lambda: sequential(nn.ReLU()), None),
    "a norm inside": (lambda: sequential(nn.GELU(), nn.LayerNorm(96)), None),
    "a norm inside timm's": (lambda: timm_mlp(nn.GELU, norm_layer=nn.LayerNorm), None),
}


@pytest.mark.parametrize("then", FUNCTIONS)
@pytest.mark.parametrize("case", ["plain", "no bias", "one token", "strided", "rows of a joint weight", "no tokens"])
def test_linear_is_the_formula_in_float64(library, case, then) -> None:
    x, weight, bias = torch.randn(2, 17, 24), torch.randn(96, 24), None if case == "no bias" else torch.randn(96)
    if case == "one token":
        x = x[0, 0]
    elif case == "strided":
        x = torch.randn(2, 24, 17).mT
    elif case == "rows of a joint weight":
        weight = torch.randn(300, 24)[100:196]
    elif case == "no tokens":
        x = x[:, :0]
    given = x.clone()
    want = FUNCTIONS[then](F.linear(x.double(), weight.double(), None if bias is None else bias.double()))
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias, then).double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, given)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lies", ["plain", "strided", "no tokens", "broadcast"])
def test_a_sum_with_a_product_is_the_formula_in_float64(library, lies, bias) -> None:
    layer, x, add = (
        nn.Linear(24, 96, bias=bias).requires_grad_(False).eval(),
        torch.randn(2, 17, 24),
        torch.randn(2, 17, 96),
    )
    if lies == "strided":
        x, add = torch.randn(2, 24, 17).mT, torch.randn(17, 2, 96).transpose(0, 1)
    elif lies == "no tokens":
        x, add = x[:, :0], add[:, :0]
    elif lies == "broadcast":
        add = add[:1, :1]
    given, want = (
        add.clone(),
        add.double() + F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None),
    )
    torch.testing.assert_close(through(layer, x, add).double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(add, given)


@pytest.mark.parametrize("name", MLPS)
def test_an_mlp_is_that_of_its_module(library, name) -> None:
    make, kind = MLPS[name]
    module = make()
    parts = mlp_of(module)
    assert (parts and parts[1]) == kind
    x, kept = 3 * torch.randn(2, 17, 24), {key: value.clone() for key, value in module.state_dict().items()}
    given, want = x.clone(), copy.deepcopy(module).double()(x.double())
    with torch.no_grad():
        torch.testing.assert_close(through_mlp(module, x).double(), want, rtol=1e-5, atol=1e-5)
        onto = x.clone()
        assert through_mlp(module, x, onto) is onto
        torch.testing.assert_close(onto.double(), x.double() + want, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, given)
    assert all(torch.equal(value, kept[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", ["QuickGELU of open_clip", "GELU of timm"])
def test_gradients_reach_tokens_and_weights_as_of_the_module(library, name) -> None:
    module, x = MLPS[name][0](), torch.randn(3, 24, requires_grad=True)
    wanted = torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()])
    found = torch.autograd.grad(through_mlp(module, x).square().sum(), [x, *module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    through(module[0] if isinstance(module, nn.Sequential) else module.fc1, x).sum().backward()
    assert x.grad is not None


def test_a_block_in_training_keeps_its_dropout() -> None:
    module = timm_mlp(GELU, drop=1.0).train()
    with torch.no_grad():
        assert not through_mlp(module, torch.randn(3, 24)).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_run_as_they_are(library, dtype) -> None:
    module, x = MLPS["QuickGELU of open_clip"][0]().to(dtype), torch.randn(3, 24, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(through_mlp(module, x), module(x))
        assert torch.equal(through(module[0], x), module[0](x))


def test_autocast_is_obeyed(library) -> None:
    module = MLPS["GELU of torch"][0]()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert through_mlp(module, torch.randn(3, 24)).dtype == torch.bfloat16


@pytest.mark.parametrize("part", ["", "0", "1", "2"])
def test_hooks_are_called(library, part) -> None:
    module, seen = MLPS["GELU of torch"][0](), []
    module.get_submodule(part).register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        through_mlp(module, torch.randn(3, 24))
    assert seen == [1]


def test_a_layer_of_another_class_runs_itself(library) -> None:
    class Adapted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    layer, x = Adapted(24, 24), torch.randn(3, 24)
    mlp = nn.Sequential(nn.Linear(24, 24), nn.GELU(), layer).eval()
    with torch.no_grad():
        assert torch.equal(through(layer, x), layer(x))
        torch.testing.assert_close(through_mlp(mlp, x), mlp(x), atol=1e-5, rtol=1e-5)


def test_an_exported_block_holds_torch_operators_alone(library) -> None:
    block = random_clip().visual.transformer.resblocks[0]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            own = view(self.block)
            return with_ffn(own, own.merge(own.project(own.norm(x), "v")["v"]))

    with torch.no_grad():
        graph = torch.export.export(Whole(), (torch.randn(1, 5, block.ln_1.normalized_shape[0]),))
    assert "mkldnn" not in str(graph.graph)


@pytest.mark.parametrize("tokens", [1, 7, 30])
@pytest.mark.parametrize("contiguous", [True, False])
def test_an_mlp_runs_some_tokens_at_a_time(library, monkeypatch, tokens, contiguous) -> None:
    block = view(random_clip().visual.transformer.resblocks[0])
    width = block.norm(torch.zeros(1, 1, block.module.ln_1.normalized_shape[0])).shape[-1]
    x = torch.randn(2, tokens, width) if contiguous else torch.randn(tokens, 2, width).transpose(0, 1)
    with torch.no_grad():
        want = x + block.ffn(x)
        rows: list[int] = []
        whole = block.ffn
        monkeypatch.setattr(block, "ffn", lambda part, *onto: rows.append(part.numel() // width) or whole(part, *onto))
        monkeypatch.setattr(layers, "HIDDEN", {"cpu": 4 * width * 10, "cuda": 1})
        torch.testing.assert_close(with_ffn(block, x.clone(memory_format=torch.preserve_format)), want)
    assert sum(rows) == 2 * tokens
    assert max(rows) <= 10
    assert max(rows) - min(rows) <= 1 + max(rows) // 2  # even runs


def test_tokens_that_carry_gradients_are_not_written_over() -> None:
    block = view(random_clip().visual.transformer.resblocks[0])
    x = torch.randn(1, 5, block.module.ln_1.normalized_shape[0], requires_grad=True)
    with_ffn(block, x).sum().backward()
    assert x.grad is not None


def test_oneDNN_is_taken_only_where_it_is_right_and_clearly_faster(monkeypatch) -> None:
    asked = kernel.onednn_is_faster.__wrapped__
    ticks = iter(range(1000))
    monkeypatch.setattr(timing.time, "thread_time", lambda: next(ticks))
    monkeypatch.setattr(kernel, "onednn_linear", F.linear)
    assert not asked()  # as fast
    monkeypatch.setattr(timing.time, "thread_time", lambda: 0.0)
    assert not asked()
    monkeypatch.setattr(kernel, "onednn_linear", lambda x, weight, bias: F.linear(x, weight))
    monkeypatch.setattr(kernel, "MARGIN", 10.0)
    assert not asked()  # wrong

    def gone(*_: object) -> torch.Tensor:
        raise RuntimeError

    monkeypatch.setattr(kernel, "onednn_linear", gone)
    assert not asked()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not asked()


def test_which_is_faster_is_asked_on_one_thread_and_threads_are_given_back(monkeypatch) -> None:
    clock, seen = [0.0], []
    monkeypatch.setattr(timing.time, "thread_time", lambda: clock[0])

    def taking(seconds: float) -> Callable[[], None]:
        def call() -> None:
            seen.append(torch.get_num_threads())
            clock[0] += seconds * (1 + (len(seen) % 3))  # disturbed now and then

        return call

    torch.set_num_threads(3)
    try:
        assert timing.is_faster(taking(1.0), taking(3.1), 0.4)
        assert not timing.is_faster(taking(1.0), taking(2.0), 0.4)
        with pytest.raises(ZeroDivisionError):
            timing.is_faster(lambda: 1 // 0, taking(1.0))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert set(seen) == {1}


@pytest.mark.parametrize("norm", [None, nn.LayerNorm])
def test_a_gated_mlp_multiplies_by_the_library_taken(library, monkeypatch, norm) -> None:
    ran, own = [], kernel.onednn_linear
    monkeypatch.setattr(kernel, "onednn_linear", lambda *given: ran.append(1) or own(*given))
    module, x = SwiGLU(24, 64, norm_layer=norm).eval(), torch.randn(2, 17, 24)
    with torch.no_grad():
        torch.testing.assert_close(through_mlp(module, x), module(x), rtol=1e-5, atol=1e-5)
    assert len(ran) == (3 if library == "oneDNN" else 0)
    through_mlp(module, x.requires_grad_()).sum().backward()
    assert x.grad is not None


def test_texts_multiply_by_the_library_taken(library, monkeypatch) -> None:
    ran, own = [], kernel.onednn_linear
    monkeypatch.setattr(kernel, "onednn_linear", lambda *given: ran.append(1) or own(*given))
    backbone, words = wrap(random_clip()), ["a dog", "two cats"]
    with use("torch"):
        want = backbone.encode_text(words)
    assert not ran
    torch.testing.assert_close(backbone.encode_text(words), want, rtol=1e-5, atol=1e-5)
    assert bool(ran) == (library == "oneDNN")


def test_a_model_gives_the_same_by_either_library(monkeypatch) -> None:
    if not ONEDNN:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(kernel, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(kernel, "LEAST", 0)
    backbone, pixels = wrap(random_clip()), torch.randn(2, 3, 32, 32)
    found = backbone.encode_dense(pixels, "vanilla").features
    with use("torch"):
        want = backbone.encode_dense(pixels, "vanilla").features
    assert not torch.equal(found, want)  # so both ran
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
