"""Operators in graphs on a CPU: torch.compile and torch.export capture torch's own operators, with sizes left open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim
from torch.nn import functional as F

from densevl.inference import WindowGrid
from densevl.kernels import (
    Gaussian,
    KernelUnavailable,
    RelPos,
    affinity_apply,
    affinity_mix,
    attention,
    dense_decode,
    grid_attention,
    nearest,
    use,
)

PLAN = WindowGrid.place(16, 16, None, 1, 8).plan(9, 11)
Map = torch.Tensor  # features on a grid (B, D, h, w): what sizes are read from, as in a tower


def heads(x: Map, prefix: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = F.pad(x.flatten(2).mT, (0, 0, prefix, 0), value=0.5).unflatten(2, (2, -1)).transpose(1, 2)
    return tokens, tokens * 0.7, tokens + 0.1


def attend(x: Map, prefix: int = 1, keys: int = 0, **rule: Any) -> Any:
    q, k, v = heads(x, prefix)
    return grid_attention(q, k[:, :, keys:], v[:, :, keys:], (x.shape[2], x.shape[3]), prefix, **rule)


def with_rel(x: Map, **rule: Any) -> Any:
    h, w = x.shape[2], x.shape[3]
    rel = torch.cat([x.mean(3), x.mean(2)], dim=2).repeat_interleave(2, 0)[:, :1].expand(-1, h * w, -1)
    return grid_attention(*heads(x), (h, w), bias=RelPos(rel), **rule)


def spread(x: Map, **rule: Any) -> torch.Tensor:
    tokens = x.flatten(2).mT
    return affinity_apply(F.normalize(tokens + 0.5, dim=-1), tokens, **rule)


def within(x: Map) -> torch.Tensor:
    return spread(x, regions=(x[:, 0] > 0).flatten(1).long(), blank=0, floor=0.1)


def mix(x: Map) -> torch.Tensor:
    h, w = x.shape[2], x.shape[3]
    return affinity_mix(*heads(x), x.flatten(2).mT, grid=(h, w), covered=(h, w), factor=-9.0)


CASES: dict[str, Callable[[Map], Any]] = {
    "plain": attend,
    "gaussian": lambda x: attend(x, bias=Gaussian(1.5)),
    "gaussian-without-prefix-keys": lambda x: attend(x, keys=1, bias=Gaussian(1.5), scale=0.3),
    "gaussian-extra": lambda x: attend(x, bias=Gaussian(1.5), extra=x.flatten(2).mean(1)[:, None, None, :1]),
    "gaussian-lse": lambda x: attend(x, 5, bias=Gaussian(2.0), want_lse=True),
    "relative": with_rel,
    "relative-lse": lambda x: with_rel(x, want_lse=True),
    "affinity": lambda x: spread(x, gamma=3.0, beta=1.2),
    "affinity-linear": lambda x: spread(x, linear=True, floor=0.3),
    "affinity-floor": lambda x: spread(x, beta=1.1, floor=0.2),
    "affinity-regions": within,
    "mix": mix,
    "nearest": lambda x: nearest(x[0].flatten(1).mT, x[0].flatten(1).mT + 0.1),
}


def class_scores(x: Map) -> torch.Tensor:
    return x[:, :, :2, :2].permute(0, 2, 3, 1)


FIXED: dict[str, Callable[[Map], Any]] = {
    "decode": lambda x: dense_decode(class_scores(x), PLAN)[:2],
    "decode-lse": lambda x: dense_decode(class_scores(x), PLAN, 20.0),
}


def maps(*size: int) -> Map:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


def agree(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)  # graphs have torch's attention, eager calls C's


class Module(torch.nn.Module):
    def __init__(self, call: Callable[[Map], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Map) -> Any:
        return self.call(x)


def ours(graph: torch.fx.Graph) -> list[str]:
    """Operators of densevl among the nodes of a graph."""
    return [str(node.target) for node in graph.nodes if str(node.target).startswith("densevl.")]


@pytest.mark.parametrize(
    ("name", "strict"), [*((name, False) for name in CASES), ("gaussian", True), ("relative", True), ("affinity", True)]
)
def test_an_exported_program_runs_at_other_sizes_and_holds_no_operator_of_ours(name, strict) -> None:
    call = CASES[name]
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    if name == "nearest":
        sizes.pop(0)  # one image is all it reads
    program = torch.export.export(Module(call), (maps(2, 32, 5, 7),), dynamic_shapes=(sizes,), strict=strict)
    assert not ours(program.graph)
    for size in ((2, 32, 5, 7), (3, 32, 4, 9), (1, 32, 12, 3), (2, 32, 60, 44)):
        x = maps(*(size if name != "nearest" else (2, *size[1:])))
        agree(program.module()(x), call(x))


@pytest.mark.parametrize("name", list(FIXED))
def test_an_exported_decode_takes_any_number_of_images(name) -> None:
    program = torch.export.export(Module(FIXED[name]), (maps(2, 3, 2, 2),), dynamic_shapes=({0: Dim.DYNAMIC},))
    assert not ours(program.graph)
    for batch in (1, 2, 5):
        agree(program.module()(maps(batch, 3, 2, 2)), FIXED[name](maps(batch, 3, 2, 2)))


def test_an_exported_program_never_holds_a_kernel(monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with use("triton"), pytest.raises(KernelUnavailable, match="exported program"):
        torch.export.export(Module(attend), (maps(1, 32, 3, 3),))


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("name", list(CASES | FIXED))
def test_a_graph_on_a_cpu_is_of_torchs_operators_and_has_no_break(name, dynamic) -> None:
    seen: list[list[str]] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        seen.append(ours(graph.graph))
        return graph

    call = (CASES | FIXED)[name]
    torch.compiler.reset()
    with torch.inference_mode():
        compiled = torch.compile(call, backend=backend, fullgraph=True, dynamic=dynamic)
        for size in ((2, 32, 5, 7), (2, 32, 4, 9)):
            agree(compiled(maps(*size)), call(maps(*size)))
    assert seen
    assert not any(seen)


def test_a_captured_graph_keeps_to_rows_where_the_maps_are_large(monkeypatch) -> None:
    monkeypatch.setattr(attention, "BIAS_TOKENS", 8)
    monkeypatch.setattr(attention, "BIAS_ROWS", 10)
    monkeypatch.setattr(attention, "RELATIVE_HELD", 0)
    x = maps(1, 32, 5, 7)
    for call in (CASES["gaussian"], with_rel):
        torch.compiler.reset()
        agree(torch.compile(call, backend="eager", fullgraph=True)(x), call(x))


def test_a_captured_graph_gives_gradients_through_torch() -> None:
    def loss(x: Map) -> torch.Tensor:
        return attend(x, bias=Gaussian(2.0)).square().sum()

    given = maps(2, 32, 3, 4).requires_grad_(True)
    (want,) = torch.autograd.grad(loss(given), given)
    (got,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(given), given)
    agree(got, want)
