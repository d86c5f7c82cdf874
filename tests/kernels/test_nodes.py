"""Operators under torch.compile: one node each, no broken graph, the same values; gradients go through torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from densevl.inference import WindowGrid
from densevl.kernels import nodes, ops
from densevl.kernels.ops import Gaussian, RelPos

GRID = (3, 4)


def tensors() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 12, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v, torch.randn(4, 12, 7), F.normalize(torch.randn(2, 12, 6) + 0.5, dim=-1), torch.randn(2, 12, 5)


q, k, v, rel, x, values = tensors()
plan = WindowGrid.place(16, 16, None, 1, 8).plan(9, 11)
axes = plan.rows.matrix, plan.cols.matrix
regions = torch.randint(0, 3, (2, 12))
rule = (3.0, 1.2, None, False, None, None, None)
mix = (GRID, (2, 3), rel, 1.2, 0.9, None)
NODES = {
    "decode": (nodes.dense_decode, (torch.randn(2, 2, 2, 3), *axes, None)),
    "decode-lse": (nodes.dense_decode, (torch.randn(2, 2, 2, 3), *axes, 20.0)),
    "attention": (nodes.grid_attention, (q, k, v, GRID, 0, None, None, None, None, False)),
    "attention-gaussian": (nodes.grid_attention, (q, k, v, GRID, 0, 1.5, 0.3, None, None, True)),
    "attention-relative": (nodes.grid_attention, (q, k, v, GRID, 0, None, None, None, rel, False)),
    "attention-extra": (nodes.grid_attention, (q, k, v, GRID, 0, None, None, torch.randn(12, 12), None, False)),
    "attention-half": (nodes.grid_attention, (q.half(), k.half(), v.half(), GRID, 0, 2.0, None, None, None, True)),
    "affinity": (nodes.affinity_apply, (x, values, *rule)),
    "affinity-regions": (
        nodes.affinity_apply,
        (x, values, 1.0, None, None, False, regions, 0, torch.tensor([0.1, 0.2])),
    ),
    "mix": (nodes.affinity_mix, (q, k, v, values[:, :6], *mix)),
    "nearest": (nodes.nearest, (x[0], x[1])),
    "nearest-nothing": (nodes.nearest, (x[0], x[1, :0])),
}


@pytest.mark.parametrize("case", list(NODES))
def test_a_node_keeps_what_it_promises_to_torch(case) -> None:
    node, args = NODES[case]
    torch.library.opcheck(node, args)


CALLS = {
    "decode": lambda scores: ops.dense_decode(scores, plan),
    "decode-lse": lambda scores: ops.dense_decode(scores, plan, 20.0),
    "attention": lambda a: ops.grid_attention(a, k, v, GRID),
    "gaussian": lambda a: ops.grid_attention(a * 2, k, v, GRID, bias=Gaussian(2.0), want_lse=True),
    "relative": lambda a: ops.grid_attention(a, k, v, GRID, bias=RelPos(rel)) + 1,
    "affinity": lambda a: ops.affinity_apply(F.normalize(a, dim=-1), values, gamma=3.0, beta=1.2),
    "mix": lambda a: ops.affinity_mix(a, k, v, values[:, :6], grid=GRID, covered=(2, 3), rel=rel),
    "nearest": lambda a: ops.nearest(a[0], a[1]),
}
INPUTS = {"decode": torch.randn(1, 2, 2, 3), "decode-lse": torch.randn(1, 2, 2, 3), "affinity": x, "nearest": x}


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("name", list(CALLS))
def test_a_graph_holds_an_operator_whole(name, dynamic) -> None:
    seen = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes if "densevl" in str(node.target))
        return graph

    call, given = CALLS[name], INPUTS.get(name, q)
    with torch.inference_mode():
        want = call(given)
        got = torch.compile(call, backend=backend, fullgraph=True, dynamic=dynamic)(given)
    torch.testing.assert_close(got, want)
    assert len(seen) == 1


@pytest.mark.filterwarnings(r"ignore:(?s).*lru_cache")
def test_a_captured_graph_gives_gradients_through_torch() -> None:
    def loss(a: torch.Tensor) -> torch.Tensor:
        return ops.grid_attention(a, k, v, GRID, bias=Gaussian(2.0)).square().sum()

    given = q.clone().requires_grad_(True)
    (want,) = torch.autograd.grad(loss(given), given)
    (got,) = torch.autograd.grad(torch.compile(loss, backend="eager")(given), given)
    torch.testing.assert_close(got, want)
