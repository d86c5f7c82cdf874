"""The operators as torch.compile sees them: single nodes that it need not look into, with the shapes they give.

Each is a `torch.library` operator of the namespace "densevl"; `ops` calls it while a graph is being captured and no
gradient is wanted, so that a graph does not break and a Triton kernel is chosen when the graph runs. Otherwise `ops`
does not come here. They have no backward: where gradients are wanted the reference itself is captured.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.library import custom_op

from densevl.kernels.resample import KEPT_PLANS, AxisPlan, DecodePlan
from densevl.kernels.table import run

Grid = list[int]


@custom_op(
    "densevl::dense_decode",
    mutates_args=(),
    schema="(Tensor scores, Tensor rows, Tensor cols, float? scale) -> (Tensor, Tensor, Tensor)",
)
def dense_decode(
    scores: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `ops.dense_decode`, with the plan's two matrices; without a scale the logsumexp is empty."""
    label, score, lse = run("dense_decode", (scores,), scores, _plan(rows, cols), scale)
    return label, score, score.new_empty(0) if lse is None else lse


@lru_cache(maxsize=KEPT_PLANS)
def _plan(rows: torch.Tensor, cols: torch.Tensor) -> DecodePlan:
    """The plan of two matrices, one object for the same two: what kernels prepare is kept by it."""
    return DecodePlan(AxisPlan(rows), AxisPlan(cols))


@dense_decode.register_fake
def _(scores, rows, cols, scale):  # type: ignore[no-untyped-def]
    shape = scores.shape[0], rows.shape[0], cols.shape[0]
    score = scores.new_empty(shape, dtype=torch.float32)
    return score.new_empty(shape, dtype=torch.int32), score, score.new_empty(0 if scale is None else shape)


@custom_op(
    "densevl::grid_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, SymInt[] grid, SymInt prefix, float? std, float? scale, Tensor? extra, "
    "Tensor? rel, bool want_lse) -> (Tensor, Tensor)",
)
def grid_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid: Grid,
    prefix: int,
    std: float | None,
    scale: float | None,
    extra: torch.Tensor | None,
    rel: torch.Tensor | None,
    want_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `ops.grid_attention`; without `want_lse` the logsumexp is empty."""
    keywords = {"rel": rel, "want_lse": want_lse}
    got = run("grid_attention", (q,), q, k, v, (grid[0], grid[1]), prefix, std, scale, extra, like=v, **keywords)
    out, lse = got if want_lse else (got, q.new_empty(0, dtype=torch.float32))
    # one memory order, whichever way was taken: the output projection's
    return out.to(v.dtype).transpose(1, 2).contiguous().transpose(1, 2), lse


@grid_attention.register_fake
def _(q, k, v, grid, prefix, std, scale, extra, rel, want_lse):  # type: ignore[no-untyped-def]
    batch, heads, tokens, _ = q.shape
    out = v.new_empty(batch, tokens, heads, v.shape[3]).transpose(1, 2)
    return out, q.new_empty((batch, heads, tokens) if want_lse else 0, dtype=torch.float32)


@custom_op(
    "densevl::affinity_apply",
    mutates_args=(),
    schema="(Tensor x, Tensor v, float gamma, float? beta, float? floor, bool linear, Tensor? regions, int? blank, "
    "Tensor? mean) -> Tensor",
)
def affinity_apply(
    x: torch.Tensor,
    v: torch.Tensor,
    gamma: float,
    beta: float | None,
    floor: float | None,
    linear: bool,
    regions: torch.Tensor | None,
    blank: int | None,
    mean: torch.Tensor | None,
) -> torch.Tensor:
    """As `ops.affinity_apply`."""
    keywords: dict[str, Any] = {"gamma": gamma, "beta": beta, "floor": floor, "linear": linear}
    keywords |= {"regions": regions, "blank": blank, "mean": mean}
    return run("affinity_apply", (x, v), x, v, like=v, **keywords).to(v.dtype)


@affinity_apply.register_fake
def _(x, v, gamma, beta, floor, linear, regions, blank, mean):  # type: ignore[no-untyped-def]
    return v.new_empty(v.shape)


@custom_op(
    "densevl::affinity_mix",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor x, SymInt[] grid, SymInt[] covered, Tensor? rel, float factor, "
    "float cap, float? negative) -> Tensor",
)
def affinity_mix(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    x: torch.Tensor,
    grid: Grid,
    covered: Grid,
    rel: torch.Tensor | None,
    factor: float,
    cap: float,
    negative: float | None,
) -> torch.Tensor:
    """As `ops.affinity_mix`."""
    sizes = {"grid": (grid[0], grid[1]), "covered": (covered[0], covered[1])}
    limit = {"rel": rel, "factor": factor, "cap": cap, "negative": negative}
    return run("affinity_mix", (q,), q, k, v, x, like=x, **sizes, **limit).to(x.dtype)


@affinity_mix.register_fake
def _(q, k, v, x, grid, covered, rel, factor, cap, negative):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@custom_op("densevl::nearest", mutates_args=(), schema="(Tensor x, Tensor memory) -> (Tensor, Tensor)")
def nearest(x: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `ops.nearest`."""
    return run("nearest", (x,), x, memory)


@nearest.register_fake
def _(x, memory):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], dtype=torch.float32), x.new_empty(x.shape[0], dtype=torch.int64)
