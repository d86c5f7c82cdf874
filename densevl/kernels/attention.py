"""Attention between tokens: `attend`, and with a bias that comes from their places in a grid, `grid_attention`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F

from densevl.kernels.bias import Gaussian, RelPos
from densevl.kernels.common import empty, may_leave_torch, need, runs, types, wide
from densevl.kernels.compiled.compiling import steps
from densevl.kernels.dispatch import runs_kernel, wants_gradients

HEAD_WIDTHS = (16, 32, 64, 80, 128)  # of the kernels
MOST_RELATIVE = 80  # widest heads with relative positions; SAM has 64 and 80
LEAST_TOKENS = 1024  # attention over fewer is left to torch's own kernels
BIAS_ROWS = 1024  # query rows whose shared bias is held at once
BIAS_TOKENS = 2304  # up to this many tokens the whole (N, N) bias is held
RELATIVE_ROWS = 256  # query rows of one head whose logits with relative positions are held
RELATIVE_HELD = 2**22  # entries of the bias of all heads that may be held together
LOGITS_HELD = 2**23  # entries of the logits of all heads that are written out together
LOG2E = math.log2(math.e)
COMPILED_KEYS = 4096  # with up to so many keys the attention in C is the faster one
Added = Callable[[slice], torch.Tensor | None]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """`F.scaled_dot_product_attention` without a mask: softmax(scale * q k^T) v, (B, A, N, d).

    On a CPU the attention in C runs (`compiled/steps.c`), where there is a compiler; it is float32's, each query for
    itself, so an image's result does not depend on what is beside it.

    Args:
        q: (B, A, N, d). k, v: (B, A, M, d). scale: factor on q k^T; None means 1 / sqrt(d).
    """
    if (
        q.ndim == k.ndim == v.ndim == 4
        and may_leave_torch(q, k, v)
        and k.shape == v.shape == (*q.shape[:2], k.shape[2], q.shape[3])
        and k.shape[2] <= COMPILED_KEYS
    ):
        return steps().attend(q, k, v, scale)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


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

    No N x N scores of all heads are held; of a bias at most `BIAS_ROWS` query rows, or one head's map.

    Args:
        q: (B, A, N, d), N = prefix + h*w. k, v: (B, A, M, d); M = N, or h*w when the prefix is not among the keys.
        grid: (h, w); prefix: leading tokens that are not patches, which a bias leaves alone.
        bias: `Gaussian`, `RelPos` (needs prefix 0) or None. scale: factor on q k^T; None means 1 / sqrt(d).
        extra: a further bias, broadcastable to (B, A, N, M), for methods that have one; it goes to torch.
        want_lse: also return log2 of the rows' sums of exp(logit), (B, A, N) float32; torch then writes out the logits
            of a few rows at a time.

    Raises:
        KernelError: shapes that do not fit.
    """
    patches = grid[0] * grid[1]
    need(q.ndim == 4 and q.shape[2] == prefix + patches, "q", q, "(B, A, {}, d)", prefix + patches)
    need(k.shape == v.shape, "k", k, "the shape of v, {}", v.shape)
    need(k.shape[:2] == q.shape[:2] and k.shape[3] == q.shape[3], "k", k, "batch, heads, width of q {}", q.shape)
    counts = patches, prefix + patches
    need(k.shape[2] in counts, "k", k, "{} keys, or {} with the prefix", *counts)
    std = bias.std if isinstance(bias, Gaussian) else None
    rel = bias.rel if isinstance(bias, RelPos) else None
    if rel is not None:
        need(prefix == 0, "rel", rel, "a grid without prefix tokens")
        wanted = (q.shape[0] * q.shape[1], q.shape[2], sum(grid))
        need(tuple(rel.shape) == wanted, "rel", rel, "({}, {}, {})", *wanted)
    if extra is not None:
        need(extra.ndim > 1, "extra", extra, "(..., N or 1, M)")

    if runs_kernel(
        "grid_attention",
        (q, k, v, rel, extra),
        lambda: "an extra bias is held whole" if extra is not None else heads(q, rel) or types(q, k, v) or empty(q, k),
        lambda: _small(q, bias is None and not want_lse),
    ):
        from densevl.kernels.triton.attention import grid_attention as kernel

        both = kernel(q, k, v, grid, prefix, std, scale, rel, want_lse)
        return both if want_lse else both[0]

    kind = v.dtype
    q, k, v, rel, extra = wide(q), wide(k), wide(v), wide(rel), wide(extra)

    def added(rows: slice) -> torch.Tensor | None:
        """What the logits of some query rows gain: broadcastable to (B, A, R, M)."""
        parts = []
        if std is not None:
            parts.append(gaussian_bias(grid, std, prefix, rows.start, rows.stop)[:, q.shape[2] - k.shape[2] :].to(q))
        if rel is not None:
            parts.append(relative_bias(rel[:, rows], grid).unflatten(0, q.shape[:2]).to(q))
        if extra is not None:
            parts.append((extra if extra.shape[-2] == 1 else extra[..., rows, :]).to(q))
        return sum(parts[1:], start=parts[0]) if parts else None

    if want_lse:
        out, lse = _attend_with_lse(q, k, v, added, scale)
        return out.to(kind), lse
    if rel is not None and extra is None:
        return _attend_relative(q, k, v, grid, rel, scale).to(kind)
    if bias is None and extra is None:
        return attend(q, k, v, scale).to(kind)
    return _attend_in_rows(q, k, v, added, scale).to(kind)


def _small(q: torch.Tensor, plain: bool) -> str | None:
    if q.shape[2] < LEAST_TOKENS:
        return f"{q.shape[2]} tokens are few; torch is as good under {LEAST_TOKENS}"
    return "torch's own attention has no bias either" if plain else None


def heads(q: torch.Tensor, rel: torch.Tensor | None) -> str | None:
    """Why a kernel cannot take the heads of q, with or without relative positions, or None."""
    width = q.shape[-1]
    if width not in HEAD_WIDTHS:
        return f"head width {width} is not one of {', '.join(map(str, HEAD_WIDTHS))}"
    if rel is not None and width > MOST_RELATIVE:
        return f"relative positions at head width {width} do not fit the registers"
    return None


def _gaussian(count: int, std: float) -> torch.Tensor:
    """exp(-dist^2 / (2 std^2)) between the places of one axis: (count, count)."""
    steps = torch.arange(count, dtype=torch.float32)
    return torch.exp(-((steps[:, None] - steps[None, :]) ** 2) / (2 * std * std))


_kept_gaussian = lru_cache(maxsize=16)(_gaussian)


def gaussian_bias(
    grid: tuple[int, int], std: float, prefix: int = 0, start: int = 0, stop: int | None = None
) -> torch.Tensor:
    """Neighbourhood bias of NACLIP for query tokens `start` to `stop`, None for the last: (R, N), N = prefix + h*w.

    exp(-dist^2 / (2 std^2)) with the distance in patches, 0 where either token is a prefix token. The Gaussian is
    separable, so it is an outer product of two small axis tables and never an N x N distance.
    """
    h, w = grid
    stop = prefix + h * w if stop is None else stop
    # No cache takes the symbols that sizes may be in a graph.
    of_axis = _gaussian if torch.compiler.is_compiling() else _kept_gaussian
    gy, gx = of_axis(h, std), of_axis(w, std)
    patches = torch.arange(max(start, prefix), max(stop, prefix)) - prefix
    rows = patches // w
    between = (gy[rows, :, None] * gx[patches - rows * w, None, :]).flatten(1)  # ONNX has no remainder by a symbol
    return F.pad(between, (prefix, 0, stop - start - between.shape[0], 0)) if prefix else between


def relative_bias(rel: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Relative position terms (..., h+w) of some queries to their bias against every key of the grid: (..., h*w)."""
    h = grid[0]
    return (rel[..., :h, None] + rel[..., None, h:]).flatten(-2)


def _laid_out(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Room for an attention's result (B, A, N, d), in the memory order that the output projection reads."""
    return v.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)


def _attend_in_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, added: Added, scale: float | None
) -> torch.Tensor:
    """Attention with the bias of some query rows at a time."""
    parts = runs(q.shape[2], BIAS_ROWS, whole=BIAS_TOKENS)
    if len(parts) == 1:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=added(parts[0]), scale=scale)
    out = _laid_out(q, v)
    for rows in parts:
        out[:, :, rows] = F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=added(rows), scale=scale)
    return out


def _attend_with_lse(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, added: Added, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention with the logits of a few query rows written out, for their logsumexp."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse = _laid_out(q, v), torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    held = 0 if torch.compiler.is_exporting() else LOGITS_HELD // max(1, q.shape[0] * q.shape[1] * k.shape[2])
    for rows in runs(q.shape[2], held):
        logits = _biased(q[:, :, rows] @ k.mT * factor, added(rows))
        out[:, :, rows] = logits.softmax(dim=-1) @ v
        lse[:, :, rows] = logits.float().logsumexp(dim=-1) * LOG2E
    return out, lse


def _biased(logits: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A call of its own, so that neither is held any longer than the sum takes."""
    return logits if bias is None else logits + bias


def _attend_relative(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: tuple[int, int], rel: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Attention with decomposed relative positions, some rows of one head at a time, in one buffer used again."""
    batch, heads, total, _ = q.shape
    in_one = torch.compiler.is_exporting() or q.is_cuda or wants_gradients((q, k, v, rel))
    # Many small maps, as SAM's windows are, go in one call: a head at a time would be all overhead.
    if in_one or batch * heads * total**2 <= RELATIVE_HELD:
        bias = relative_bias(rel, grid).unflatten(0, (batch, heads)).to(q)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    out = _laid_out(q, v)
    buffer = q.new_empty(min(RELATIVE_ROWS, total), *grid)
    for pair in range(batch * heads):
        at = pair // heads, pair % heads
        keys, values = k[at].mT * factor, v[at]
        for rows in runs(total, RELATIVE_ROWS):
            own = rel[pair, rows].to(q)
            logits = buffer[: own.shape[0]]
            torch.add(own[:, : grid[0], None], own[:, None, grid[0] :], out=logits)
            flat = logits.flatten(1)
            torch.softmax(flat.addmm_(q[at][rows], keys), dim=-1, out=flat)
            out[at][rows] = flat @ values
    return out
