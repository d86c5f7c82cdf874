"""The operators: one signature, checked once, run by torch or by a Triton kernel (see `dispatch`).

Made for inference: where gradients are asked for, the torch implementation runs. Half precision on the CPU is computed
in float32. Shape letters: B batch, A heads, N tokens, d head width, P width of compared features, E width of values,
T text queries, H/W pixels, Y/X window tokens per axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, overload

import torch

from densevl.kernels import nodes
from densevl.kernels.dispatch import Choice, KernelError, wants_gradients
from densevl.kernels.resample import DecodePlan
from densevl.kernels.table import TABLE, run


@dataclass(frozen=True)
class Gaussian:
    """Neighbourhood bias exp(-dist^2 / (2 std^2)), the distance in patches (NACLIP, WACV 2025)."""

    std: float


@dataclass(frozen=True, eq=False)
class RelPos:
    """Decomposed relative positions (SAM): the logit of query i and key (y, x) gains rel[i, y] + rel[i, h + x].

    Attributes: rel (B*A, N, h+w), made from the unscaled queries as SAM does.
    """

    rel: torch.Tensor


@overload
def dense_decode(
    scores: torch.Tensor, plan: DecodePlan, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...


@overload
def dense_decode(
    scores: torch.Tensor, plan: DecodePlan, scale: None = None
) -> tuple[torch.Tensor, torch.Tensor, None]: ...


def dense_decode(
    scores: torch.Tensor, plan: DecodePlan, scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Window scores (B, Y, X, T) to the best query of every pixel, without T x H x W; see `reference.dense_decode`.

    Returns:
        label (B, H, W) int32; score (B, H, W) float32; logsumexp of scale * score (B, H, W) float32, or None without
        a scale. The kernel expects scores within +-6e4, and its logsumexp is off by up to log T where a pixel's best
        score lies more than 87 / scale under the best of its tokens.

    Raises:
        KernelError: the scores do not have the plan's tokens, or there are no queries.
    """
    tokens = (plan.rows.matrix.shape[1], plan.cols.matrix.shape[1])
    _need(scores.ndim == 4 and scores.shape[3] > 0, "scores", scores, "(B, Y, X, T) with at least one query")
    _need(tuple(scores.shape[1:3]) == tokens, "scores", scores, "{} x {} tokens, as the plan", *tokens)
    scores = scores.float()
    if _captured((scores,)):
        label, score, lse = nodes.dense_decode(scores, plan.rows.matrix, plan.cols.matrix, scale)
        return label, score, None if scale is None else lse
    return run("dense_decode", (scores,), scores, plan, scale)


def grid_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid: tuple[int, int],
    prefix: int = 0,
    bias: Gaussian | RelPos | None = None,
    scale: float | None = None,
    *,
    extra: torch.Tensor | None = None,
    want_lse: bool = False,
) -> Any:
    """softmax(scale * q k^T + bias) v with a bias that comes from grid coordinates: (B, A, N, d).

    Args:
        q: (B, A, N, d), N = prefix + h*w. k, v: (B, A, M, d); M = N, or h*w when the prefix is not among the keys.
        grid: (h, w); prefix: leading tokens that are not patches, which a bias leaves alone.
        bias: `Gaussian`, `RelPos` (needs prefix 0) or None. scale: factor on q k^T; None means 1 / sqrt(d).
        extra: a further bias, broadcastable to (B, A, N, M); it goes to torch.
        want_lse: also return log2 of the rows' sums of exp(logit), (B, A, N) float32.

    Raises:
        KernelError: shapes that do not fit.
    """
    patches = grid[0] * grid[1]
    counts = patches, prefix + patches
    _need(q.ndim == 4 and q.shape[2] == prefix + patches, "q", q, "(B, A, {}, d)", prefix + patches)
    _need(k.shape == v.shape, "k", k, "the shape of v, {}", v.shape)
    _need(k.shape[:2] == q.shape[:2] and k.shape[3] == q.shape[3], "k", k, "batch, heads, width of q {}", q.shape)
    _need(k.shape[2] in counts, "k", k, "{} keys, or {} with the prefix", *counts)
    std = bias.std if isinstance(bias, Gaussian) else None
    rel = bias.rel if isinstance(bias, RelPos) else None
    if std is not None and not std > 0:
        raise KernelError(f"the Gaussian's std is {std}; it must be above 0")
    if rel is not None:
        _need(prefix == 0, "rel", rel, "a grid without prefix tokens")
        wanted = (q.shape[0] * q.shape[1], q.shape[2], sum(grid))
        _need(tuple(rel.shape) == wanted, "rel", rel, "({}, {}, {})", *wanted)
    tensors = tuple(t for t in (q, k, v, rel, extra) if t is not None)
    if _captured(tensors):
        both = nodes.grid_attention(q, k, v, grid, prefix, std, scale, extra, rel, want_lse)
        return both if want_lse else both[0]
    return run("grid_attention", tensors, q, k, v, grid, prefix, std, scale, extra, rel=rel, want_lse=want_lse, like=v)


def affinity_apply(
    x: torch.Tensor,
    v: torch.Tensor,
    *,
    gamma: float = 1.0,
    beta: float | None = None,
    floor: float | None = None,
    linear: bool = False,
    regions: torch.Tensor | None = None,
    blank: int | None = None,
    mean: torch.Tensor | None = None,
) -> torch.Tensor:
    """Spread values over like tokens by the cosines of unit rows: (B, N, E); see `reference.affinity_apply`.

    Raises:
        KernelError: shapes that do not fit.
    """
    _need(x.ndim == 3, "x", x, "(B, N, P)")
    _need(v.ndim == 3 and v.shape[:2] == x.shape[:2], "v", v, "({}, {}, E)", *x.shape[:2])
    if regions is not None:
        _need(regions.shape == x.shape[:2], "regions", regions, "({}, {})", *x.shape[:2])
    if mean is not None:
        _need(mean.numel() == len(x), "mean", mean, "one value per image, {}", len(x))
    if _captured((x, v)):
        return nodes.affinity_apply(x, v, gamma, beta, floor, linear, regions, blank, mean)
    rule: dict[str, Any] = {"gamma": gamma, "beta": beta, "floor": floor, "linear": linear}
    rule |= {"regions": regions, "blank": blank, "mean": mean}
    return run("affinity_apply", (x, v), x, v, like=v, **rule)


def affinity_mix(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    x: torch.Tensor,
    *,
    grid: tuple[int, int],
    covered: tuple[int, int],
    rel: torch.Tensor | None = None,
    factor: float = 1.2,
    cap: float = 0.9,
    negative: float | None = None,
) -> torch.Tensor:
    """Attention probabilities of another model, cut by its values' cosines, applied to x (Trident, ICCV 2025).

    Returns (B, n, E); see `reference.affinity_mix`.

    Raises:
        KernelError: shapes that do not fit.
    """
    tokens, inner = grid[0] * grid[1], covered[0] * covered[1]
    _need(q.ndim == 4 and q.shape[2] == tokens, "q", q, "(B, A, {}, d)", tokens)
    _need(k.shape == q.shape and v.shape == q.shape, "k", k, "q and v of one shape, {}", q.shape)
    _need(x.ndim == 3 and x.shape[:2] == (len(q), inner), "x", x, "({}, {}, E)", len(q), inner)
    if covered[0] > grid[0] or covered[1] > grid[1]:
        raise KernelError(f"covered {covered} reaches past the grid {grid}")
    if rel is not None:
        wanted = (q.shape[0] * q.shape[1], tokens, sum(grid))
        _need(tuple(rel.shape) == wanted, "rel", rel, "({}, {}, {})", *wanted)
    tensors = tuple(t for t in (q, k, v, x, rel) if t is not None)
    if _captured(tensors):
        return nodes.affinity_mix(q, k, v, x, grid, covered, rel, factor, cap, negative)
    limit = {"rel": rel, "factor": factor, "cap": cap, "negative": negative}
    return run("affinity_mix", tensors, q, k, v, x, like=x, grid=grid, covered=covered, **limit)


def nearest(x: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most alike memory row of every row, by dot product; see `reference.nearest`.

    Args:
        x: (P, D); memory: (M, D). For cosines give unit rows.

    Returns:
        similarity (P,) float32 and index (P,) int64, the smallest among equals; -inf and -1 where M = 0.

    Raises:
        KernelError: the widths differ.
    """
    _need(x.ndim == 2, "x", x, "(P, D)")
    _need(memory.ndim == 2 and memory.shape[1] == x.shape[1], "memory", memory, "(M, {})", x.shape[1])
    if _captured((x, memory)):
        return nodes.nearest(x, memory)
    return run("nearest", (x, memory), x, memory)


def explain(name: str, tensors: tuple[torch.Tensor, ...], *args: Any, **keywords: Any) -> Choice:
    """What an operator of `TABLE` would run for the arguments of its reference, and why.

    Raises:
        KernelError: no such operator. KernelUnavailable: Triton is forced and cannot run.
    """
    if name not in TABLE:
        raise KernelError(f"no operator '{name}'; there are {', '.join(TABLE)}")
    return TABLE[name].choose(tensors, *args, **keywords)


def _captured(tensors: tuple[torch.Tensor, ...]) -> bool:
    """Whether torch.compile is at work, and the operator may be one node of its graph."""
    return torch.compiler.is_compiling() and not wants_gradients(tensors)


def _need(holds: bool, name: str, tensor: torch.Tensor, wanted: str, *sizes: Any) -> None:
    """Raise unless it holds; `sizes` are put into `wanted` only then: torch.compile cannot print symbolic sizes."""
    if not holds:
        said = wanted.format(*(tuple(size) if isinstance(size, torch.Size) else size for size in sizes))
        raise KernelError(f"{name} has shape {tuple(tensor.shape)}; wanted {said}")
