"""What each Triton kernel cannot take, and where it is not worth it: pairs of functions that return words or None.

They take the arguments of the torch reference of the same name, and never import triton.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from densevl.kernels.resample import DecodePlan, decode_tiling

HEAD_WIDTHS = (16, 32, 64, 80, 128)
MOST_RELATIVE = 80  # widest heads with relative positions; SAM has 64 and 80
MOST_TAPS = 128  # tokens that an 8 x 8 tile of pixels may touch
LEAST_TOKENS = 1024  # attention over fewer is left to torch's own kernels
LEAST_MEMORY = 4096  # rows
MOST_HEADS = 127  # summed probabilities must fit float16, see `triton.mix`

Why = str | None


def _type(*tensors: torch.Tensor) -> Why:
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) > 1:
        return "tensors differ in type: " + ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    kind = tensors[0].dtype
    if kind in (torch.float16, torch.bfloat16):
        return None
    if kind == torch.float32 and tensors[0].device.type == "cpu":
        return None  # the interpreter's dots are exact
    return f"{str(kind).removeprefix('torch.')} is not taken; give float16 or bfloat16"


def _empty(*tensors: torch.Tensor) -> Why:
    return "a tensor is empty" if any(tensor.numel() == 0 for tensor in tensors) else None


def _never(*args: Any, **keywords: Any) -> Why:
    return None


def _decode(scores: torch.Tensor, plan: DecodePlan, scale: float | None = None) -> Why:
    if scale is not None and not scale > 0:
        return f"scale {scale} is not above 0"
    taps = decode_tiling(plan).taps
    return f"a tile of pixels touches {taps} tokens, more than {MOST_TAPS}" if taps > MOST_TAPS else _empty(scores)


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid: tuple[int, int],
    prefix: int = 0,
    std: float | None = None,
    scale: float | None = None,
    extra: torch.Tensor | None = None,
    *,
    rel: torch.Tensor | None = None,
    want_lse: bool = False,
) -> Why:
    if extra is not None:
        return "an extra bias is held whole"
    if std is not None and rel is not None:
        return "two biases at once"
    if q.shape[-1] not in HEAD_WIDTHS:
        return f"head width {q.shape[-1]} is not one of {', '.join(map(str, HEAD_WIDTHS))}"
    return _relative(q, rel) or _type(q, k, v) or _empty(q, k)


def _relative(q: torch.Tensor, rel: torch.Tensor | None) -> Why:
    wide = rel is not None and q.shape[-1] > MOST_RELATIVE
    return f"relative positions at head width {q.shape[-1]} do not fit the registers" if wide else None


def _small_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid: tuple[int, int],
    prefix: int = 0,
    std: float | None = None,
    *args: Any,
    rel: torch.Tensor | None = None,
    want_lse: bool = False,
) -> Why:
    if q.shape[2] < LEAST_TOKENS:
        return f"{q.shape[2]} tokens are few; torch is as good under {LEAST_TOKENS}"
    return "torch's own attention has no bias either" if std is None and rel is None and not want_lse else None


def _affinity(
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
) -> Why:
    if regions is not None:
        return "regions are for torch"
    if not linear and not gamma > 0:
        return f"gamma {gamma} is not above 0"
    return _type(x, v) or _empty(x, v)


def _mix(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    x: torch.Tensor,
    *,
    rel: torch.Tensor | None = None,
    **keywords: Any,
) -> Why:
    if q.shape[-1] not in HEAD_WIDTHS:
        return f"head width {q.shape[-1]} is not one of {', '.join(map(str, HEAD_WIDTHS))}"
    if q.shape[1] > MOST_HEADS:
        return f"{q.shape[1]} heads are more than {MOST_HEADS}"
    return _relative(q, rel) or _type(q, k, v, x) or _empty(q, x)


def _nearest(x: torch.Tensor, memory: torch.Tensor) -> Why:
    return _type(x, memory) or _empty(x, memory)


def _small_memory(x: torch.Tensor, memory: torch.Tensor) -> Why:
    return f"{len(memory)} rows of memory are few" if len(memory) < LEAST_MEMORY else None


LIMITS: dict[str, tuple[Callable[..., Why], Callable[..., Why]]] = {
    "dense_decode": (_decode, _never),
    "grid_attention": (_attention, _small_attention),
    "affinity_apply": (_affinity, _never),
    "affinity_mix": (_mix, _never),
    "nearest": (_nearest, _small_memory),
}
