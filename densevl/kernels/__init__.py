"""The arithmetic that everything else calls: attention between tokens, affinities, and decoding of scores to pixels.

One file an operator: its signature, its checks, the torch code that defines it and runs on the CPU, and when its Triton
kernel (`triton/`) takes over (see `dispatch`). Names load when first used: neither torch nor triton is imported here.

Made for inference: where gradients are asked for, torch runs. Half precision on the CPU is computed in float32. Shape
letters: B batch, A heads, N tokens, d head width, P width of compared features, E width of values, T text queries, H/W
pixels, Y/X window tokens per axis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "affinity": ("affinity_apply", "affinity_mean"),
    "attention": ("grid_attention", "gaussian_bias"),
    "bias": ("Gaussian", "RelPos"),
    "decode": ("dense_decode", "dense_scores"),
    "dispatch": ("use", "explain", "Choice", "KernelError", "KernelUnavailable"),
    "mix": ("affinity_mix",),
    "neighbours": ("nearest",),
    "resample": ("AxisPlan", "DecodePlan"),
}
_LAZY = {name: home for home, names in _HOMES.items() for name in names}
__all__ = list(_LAZY)

if TYPE_CHECKING:  # the same for editors; `x as x` marks a name as public
    from densevl.kernels.affinity import affinity_apply as affinity_apply
    from densevl.kernels.affinity import affinity_mean as affinity_mean
    from densevl.kernels.attention import gaussian_bias as gaussian_bias
    from densevl.kernels.attention import grid_attention as grid_attention
    from densevl.kernels.bias import Gaussian as Gaussian
    from densevl.kernels.bias import RelPos as RelPos
    from densevl.kernels.decode import dense_decode as dense_decode
    from densevl.kernels.decode import dense_scores as dense_scores
    from densevl.kernels.dispatch import Choice as Choice
    from densevl.kernels.dispatch import KernelError as KernelError
    from densevl.kernels.dispatch import KernelUnavailable as KernelUnavailable
    from densevl.kernels.dispatch import explain as explain
    from densevl.kernels.dispatch import use as use
    from densevl.kernels.mix import affinity_mix as affinity_mix
    from densevl.kernels.neighbours import nearest as nearest
    from densevl.kernels.resample import AxisPlan as AxisPlan
    from densevl.kernels.resample import DecodePlan as DecodePlan


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'densevl.kernels' has no attribute '{name}'")
    return getattr(import_module(f"densevl.kernels.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
