"""Kernels on a device against the formulas of papers, torch's own attention and torch.compile: time, memory, roofline.

`gpu_check.py` runs this. Results are compared with torch's in float32 before timing. Times are device times between two
events, with caches emptied before each call; medians. On the CPU (a dry run) every figure is meaningless.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from densevl.benchmarking.clock import peak_mib
from densevl.inference import WindowGrid
from densevl.kernels import (
    Gaussian,
    RelPos,
    affinity_apply,
    affinity_mix,
    dense_decode,
    grid_attention,
    nearest,
    use,
)
from densevl.kernels.attention import gaussian_bias, relative_bias
from densevl.kernels.decode import decode_tiling
from tools.kernels import formulas

Run = Callable[[], Any]
HALF = (torch.float16, torch.bfloat16)
BARS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}  # ||got - want|| / ||want||
THRESHOLD_BAR = 3e-2  # if a cosine near a threshold may fall on either side of it
SPENT = 0.3  # seconds of device time per figure, at most
MOST_CALLS = 100
CACHE = 2**28  # bytes; larger than any device's cache


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    Attributes:
        ours: the operator, as users call it. exact: the same in float32. eager: the papers' formula.
        sdpa: torch's own best attention, or None if there is no attention in it.
        flops, moved: floating-point operations and bytes that the kernel needs at least. bar: limit on the error.
        compiles: whether torch.compile is tried; a loop over many windows would take minutes.
    """

    name: str
    dtype: torch.dtype
    shape: str
    ours: Run
    exact: Run
    eager: Run
    sdpa: Run | None
    flops: float
    moved: float
    bar: float
    compiles: bool = True


def cases(device: torch.device, small: bool) -> Iterator[Case]:
    """Yield all cases, made on demand, so that one's tensors are freed before the next."""
    yield _decode(device, *(((24, 32), 16, 8, 8, 5) if small else ((448, 672), 224, 112, 16, 171)))
    grid, heads, widths = ((4, 8), 1, (16,)) if small else ((64, 64), 12, (64, 80))
    for dtype in HALF[:1] if small else HALF:  # the interpreter reads bfloat16 as integers
        yield _attention(device, dtype, "lse", grid, heads, widths[0])
        yield _attention(device, dtype, "gaussian", grid, heads, widths[0])
        for width in widths:
            yield _attention(device, dtype, "relative", grid, heads, width)
        yield _affinity(device, dtype, *((20, 16, 2) if small else (4096, 768, 12)))
        yield _mix(device, dtype, grid, heads, widths[0], *((16,) if small else (768,)))
        yield _nearest(device, dtype, *((5, 9, 16) if small else (1024, 131072, 768)))
    if not small:
        yield _decode(device, (1024, 1024), 224, 112, 16, 171)


def _bytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _decode(
    device: torch.device, image: tuple[int, int], crop: int, stride: int, patch: int, queries: int, scale: float = 40.0
) -> Case:
    windows = WindowGrid.place(*image, crop, stride, patch)
    parts = torch.randn(len(windows), queries, crop // patch, crop // patch, device=device) * 0.1
    laid = windows.assemble(parts.permute(0, 2, 3, 1).contiguous(), 1)
    plan = windows.plan(*image)
    taps = decode_tiling(plan.rows.matrix, plan.cols.matrix).taps

    def ours() -> tuple[torch.Tensor, ...]:
        label, score, lse = dense_decode(laid, plan, scale)
        return label[0], torch.exp(scale * score - lse)[0]

    return Case(
        "decode",
        torch.float32,
        f"{image[0]} x {image[1]}, {len(windows)} windows, {queries} queries, {taps} taps",
        lambda: ours()[1],
        lambda: ours()[1],
        lambda: formulas.decode(parts, windows.corners, crop, image, scale)[1],
        None,
        flops=3 * 2.0 * image[0] * image[1] * queries * taps,  # three half-precision products
        moved=_bytes(laid) + image[0] * image[1] * 12.0,
        bar=5e-5,  # for probabilities: the scale is in the exponent
        compiles=len(windows) <= 15,
    )


def _attention(
    device: torch.device, dtype: torch.dtype, kind: str, grid: tuple[int, int], heads: int, width: int
) -> Case:
    tokens = grid[0] * grid[1]
    qkv = torch.randn(1, tokens, 3, heads, width, device=device).to(dtype)
    rel = torch.randn(heads, tokens, sum(grid), device=device).to(dtype)
    held = gaussian_bias(grid, 5.0).to(device, dtype)

    def split(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.permute(2, 0, 3, 1, 4).unbind(0)

    def ours(x: torch.Tensor, terms: torch.Tensor) -> torch.Tensor:
        if kind == "lse":
            return grid_attention(*split(x), grid, want_lse=True)[0]
        return grid_attention(*split(x), grid, bias=Gaussian(5.0) if kind == "gaussian" else RelPos(terms))

    def bias() -> torch.Tensor | None:
        if kind == "relative":
            return relative_bias(rel, grid)[None]
        return held if kind == "gaussian" else None

    return Case(
        f"attention {kind}",
        dtype,
        f"{heads} heads of {width}, {grid[0]} x {grid[1]} tokens",
        lambda: ours(qkv, rel),
        lambda: ours(qkv.float(), rel.float()),
        lambda: formulas.attention(*split(qkv), bias()),
        lambda: F.scaled_dot_product_attention(*split(qkv), attn_mask=bias()),
        flops=4.0 * heads * tokens**2 * width,
        moved=_bytes(qkv) * 4 / 3 + (_bytes(rel) if kind == "relative" else 0),
        bar=BARS[dtype],
    )


def _affinity(device: torch.device, dtype: torch.dtype, tokens: int, width: int, heads: int) -> Case:
    x = F.normalize(torch.randn(1, tokens, width, device=device) + 0.5, dim=-1).to(dtype)
    v = torch.randn(1, tokens, width, device=device).to(dtype)
    return Case(
        "affinity",
        dtype,
        f"{tokens} tokens of {width}, {heads} heads",
        lambda: affinity_apply(x, v, gamma=3.0, beta=1.2),
        lambda: affinity_apply(x.float(), v.float(), gamma=3.0, beta=1.2),
        lambda: formulas.affinity(x, v, heads, 3.0, 1.2),
        None,
        flops=4.0 * tokens**2 * width,
        moved=_bytes(x, v, v),
        bar=THRESHOLD_BAR,
    )


def _mix(device: torch.device, dtype: torch.dtype, grid: tuple[int, int], heads: int, width: int, values: int) -> Case:
    tokens = grid[0] * grid[1]
    qkv = torch.randn(1, tokens, 3, heads, width, device=device)
    # Values in a few directions, as images have them, so that few cosines lie near a limit.
    qkv[:, :, 2] = (torch.randn(3, heads, width, device=device) + 0.5)[torch.randint(3, (tokens,), device=device)]
    q, k, v = qkv.to(dtype).permute(2, 0, 3, 1, 4).unbind(0)
    x = torch.randn(1, tokens, values, device=device).to(dtype)

    def ours(*given: torch.Tensor) -> torch.Tensor:
        return affinity_mix(*given, grid=grid, covered=grid)

    return Case(
        "mix",
        dtype,
        f"{heads} heads of {width}, {grid[0]} x {grid[1]} tokens, values of {values}",
        lambda: ours(q, k, v, x),
        lambda: ours(*(t.float() for t in (q, k, v, x))),
        lambda: formulas.mix(q, k, v, x),
        None,
        flops=(8.0 * heads * width + 2.0 * values) * tokens**2,  # logits twice: for their sums and for the map
        moved=_bytes(qkv.to(dtype), x, x),
        bar=THRESHOLD_BAR,
    )


def _nearest(device: torch.device, dtype: torch.dtype, rows: int, remembered: int, width: int) -> Case:
    x, memory = (F.normalize(torch.randn(n, width, device=device), dim=-1).to(dtype) for n in (rows, remembered))
    return Case(
        "nearest",
        dtype,
        f"{rows} rows, {remembered} remembered, {width} wide",
        lambda: nearest(x, memory)[0],
        lambda: nearest(x.float(), memory.float())[0],
        lambda: formulas.nearest(x, memory)[0],
        None,
        flops=2.0 * rows * remembered * width,
        moved=_bytes(x, memory),
        bar=BARS[torch.float32],  # half-precision products are exact
    )


def times(run: Run, device: torch.device) -> list[float]:
    """Time some calls in seconds: device time between two events; in a dry run one call, wall time."""
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return [time.perf_counter() - started]
    flushed = torch.empty(CACHE, dtype=torch.uint8, device=device)

    def once() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.zero_()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3

    longest = max([once() for _ in range(3)][1:])
    return [once() for _ in range(min(MOST_CALLS, max(5, int(SPENT / max(longest, 1e-6)))))]


def peaks(device: torch.device) -> dict[str, Any]:
    """Measure the device's peak: bytes per second of a copy, and operations per second of a matrix product."""
    cuda = device.type == "cuda"
    size, side = (2**30, 8192) if cuda else (2**16, 64)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found: dict[str, Any] = {"bytes_per_s": 2 * size / min(times(lambda: target.copy_(source), device))}
    for dtype in (*HALF, torch.float32):
        # Not zeros: with them a device draws less power and runs faster than with other numbers.
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        found[_named(dtype)] = 2 * side**3 / min(times(lambda a=a, b=b: a @ b, device))
    return found


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure(case: Case, device: torch.device, most: dict[str, Any]) -> dict[str, Any]:
    """Run one case: compare the kernel and other ways with torch in float32, time them, relate them to the roofline.

    A way other than the kernel may fail (no memory, no compiler); its reason is recorded and the rest continues.
    """
    with use("torch"):
        want = case.exact().double()
    backend = "inductor" if device.type == "cuda" else "eager"
    torch.compiler.reset()
    ways: dict[str, tuple[str, Run | None]] = {
        "kernel": ("triton", case.ours),
        "torch": ("torch", case.ours),
        "eager": ("torch", case.eager),
        "compiled": ("torch", torch.compile(case.eager, dynamic=False, backend=backend) if case.compiles else None),
        "sdpa": ("torch", case.sdpa),
    }
    row: dict[str, Any] = {"case": case.name, "dtype": _named(case.dtype), "shape": case.shape, "bar": case.bar}
    row["ways"] = {name: _way(run, mode, want, device) for name, (mode, run) in ways.items() if run is not None}
    ours = row["ways"]["kernel"]
    row["ok"] = ours["why"] is None and ours["error"] <= case.bar
    if ours["why"] is None:
        # Decode's products are of float16 halves.
        products = case.flops / most["float16" if case.dtype == torch.float32 else _named(case.dtype)]
        moving = case.moved / most["bytes_per_s"]
        row["roofline"] = {
            "flops": case.flops,
            "bytes": case.moved,
            "flops_per_s": case.flops / ours["seconds"],
            "bytes_per_s": case.moved / ours["seconds"],
            "bound": "products" if products > moving else "memory",
            "share": max(products, moving) / ours["seconds"],
        }
    return row


def _way(run: Run, mode: str, want: torch.Tensor, device: torch.device) -> dict[str, Any]:
    try:
        with use(mode):
            got = run().double()
            error = ((got - want).norm() / want.norm()).item()
            del got
            taken = times(run, device)
            extra = peak_mib(run, device)
    except Exception as failure:  # noqa: BLE001 - one way's failure is a figure of the report
        return {"why": f"{type(failure).__name__}: {str(failure).strip().splitlines()[0] if str(failure) else ''}"}
    median, least = statistics.median(taken), min(taken)
    return {"why": None, "error": error, "seconds": median, "least": least, "calls": len(taken), "extra_mib": extra}
