"""The operators by name, and how one is run: the kernel where `dispatch` chooses it, else its reference."""

from __future__ import annotations

from typing import Any

import torch

from densevl.kernels import reference
from densevl.kernels.dispatch import Operator
from densevl.kernels.limits import LIMITS

TRITON = "densevl.kernels.triton"
HALF = (torch.float16, torch.bfloat16)
TABLE = {
    name: Operator(name, getattr(reference, name), f"{TRITON}.{module}", *LIMITS[name])
    for name, module in {
        "dense_decode": "decode",
        "grid_attention": "attention",
        "affinity_apply": "affinity",
        "affinity_mix": "mix",
        "nearest": "memory",
    }.items()
}


def run(
    name: str, tensors: tuple[torch.Tensor, ...], *args: Any, like: torch.Tensor | None = None, **keywords: Any
) -> Any:
    """Run an operator; on the CPU in float32 or wider, with results in the type of `like`.

    Args:
        tensors: those of the arguments that may carry gradients; the first one's device counts.
    """
    operator = TABLE[name]
    # While torch.compile looks on, only calls that want gradients come here, and they are for the reference.
    kernel = not torch.compiler.is_compiling() and operator.choose(tensors, *args, **keywords).kernel
    if kernel:
        return operator.launch(*args, **keywords)
    if tensors[0].device.type != "cpu":
        return operator.reference(*args, **keywords)
    out = operator.reference(*map(_wide, args), **{key: _wide(value) for key, value in keywords.items()})
    if like is None or like.dtype not in HALF:
        return out
    return (out[0].to(like.dtype), *out[1:]) if isinstance(out, tuple) else out.to(like.dtype)


def _wide(value: Any) -> Any:
    half = isinstance(value, torch.Tensor) and value.dtype in HALF
    return value.float() if half else value
