"""Kernels as torch's dispatcher sees them: what a launch promises, and one node of a graph where a kernel would run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from densevl.inference import WindowGrid
from densevl.kernels import Gaussian, RelPos, affinity_apply, affinity_mix, dense_decode, grid_attention, nearest, use
from densevl.kernels.triton import affinity, attention, decode, mix, neighbours

GRID = (3, 4)
Call = Callable[[torch.Tensor], Any]


def moved(device: torch.device) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 12, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
    x = F.normalize(torch.randn(2, 12, 6) + 0.5, dim=-1)
    given = {"q": q, "k": k, "v": v, "rel": torch.randn(4, 12, 7), "x": x, "values": torch.randn(2, 12, 5)}
    return {name: tensor.to(device, torch.float16) for name, tensor in given.items()}


PLAN = WindowGrid.place(16, 16, None, 1, 8).plan(9, 11)
LAUNCHES: dict[str, Callable[..., tuple[Any, tuple[Any, ...]]]] = {
    "decode": lambda q, **_: (decode.dense_decode, (scores(q), PLAN.rows.matrix, PLAN.cols.matrix, None)),
    "decode-lse": lambda q, **_: (decode.dense_decode, (scores(q), PLAN.rows.matrix, PLAN.cols.matrix, 20.0)),
    "attention": lambda q, k, v, **_: (attention.grid_attention, (q, k, v, GRID, 0, None, None, None, False)),
    "gaussian": lambda q, k, v, **_: (attention.grid_attention, (q, k, v, GRID, 0, 1.5, 0.3, None, True)),
    "relative": lambda q, k, v, rel, **_: (attention.grid_attention, (q, k, v, GRID, 0, None, None, rel, False)),
    "affinity": lambda x, values, **_: (affinity.affinity_apply, (x, values, cut(x), 3.0, None, False)),
    "affinity-linear": lambda x, values, **_: (affinity.affinity_apply, (x, values, None, 1.0, 0.2, True)),
    "mix": lambda q, k, v, rel, values, **_: (
        mix.affinity_mix,
        (q, k, v, values[:, :6], GRID, (2, 3), rel, 1.2, 0.9, None),
    ),
    "nearest": lambda x, **_: (neighbours.nearest, (x[0], x[1])),
}


def scores(q: torch.Tensor) -> torch.Tensor:
    return q[:, 0, :4, :3].float().unflatten(1, (2, 2))


def cut(x: torch.Tensor) -> torch.Tensor:
    return x.new_full((2,), 0.1, dtype=torch.float32)


@pytest.mark.parametrize("case", list(LAUNCHES))
def test_a_launch_keeps_what_it_promises_to_torch(case, device) -> None:
    operator, args = LAUNCHES[case](**moved(device))
    torch.library.opcheck(operator, args)


CALLS: dict[str, Callable[..., Call]] = {
    "decode": lambda **_: lambda q: dense_decode(scores(q), PLAN),
    "decode-lse": lambda **_: lambda q: dense_decode(scores(q), PLAN, 20.0),
    "attention": lambda k, v, **_: lambda q: grid_attention(q, k, v, GRID),
    "gaussian": lambda k, v, **_: lambda q: grid_attention(q * 2, k, v, GRID, bias=Gaussian(2.0), want_lse=True),
    "relative": lambda k, v, rel, **_: lambda q: grid_attention(q, k, v, GRID, bias=RelPos(rel)) + 1,
    "affinity": lambda x, values, **_: lambda q: affinity_apply(x + q.mean() * 0, values, gamma=3.0, beta=1.2),
    "mix": lambda k, v, rel, values, **_: (
        lambda q: affinity_mix(q, k, v, values[:, :6], grid=GRID, covered=(2, 3), rel=rel)
    ),
    "nearest": lambda x, **_: lambda q: nearest(x[0], x[1] + q.mean() * 0),
}


@pytest.mark.parametrize(
    ("name", "dynamic"), [*((name, True) for name in CALLS), ("decode", False), ("gaussian", False)]
)
def test_a_graph_holds_a_kernel_as_one_node(name, dynamic, device) -> None:
    seen = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes if str(node.target).startswith("densevl."))
        return graph

    given = moved(device)
    call, q = CALLS[name](**given), given["q"]
    torch.compiler.reset()
    with torch.inference_mode():
        with use("triton"):
            want = call(q)
            compiled = torch.compile(call, backend=backend, fullgraph=True, dynamic=dynamic)
            torch.testing.assert_close(compiled(q), want)
        assert len(seen) == 1
        with use("torch"):  # another mode is another graph
            torch.testing.assert_close(compiled(q), want, atol=5e-3, rtol=5e-3)
    assert len(seen) == 1
