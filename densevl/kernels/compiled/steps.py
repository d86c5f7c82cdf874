"""What lies between products: attention, and of 8-bit ones quantise, layer norm, activation, scale and bias.

`Torch` defines it. `Compiled` is the same in C (`steps.c`), each in one pass over memory that leaves no float32 tensor
behind, and is taken where a C compiler is found (`compiling.py`). Both round each token for itself, so that its result
does not depend on what else is in the batch, and both give NaN for a token that holds NaN. Shape letters: M tokens, N
numbers of one.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from densevl.kernels.common import QUICK

TINY = 1e-12
SHIFT = 0.1702
"""What is added to activations so that none is negative: each of `KINDS` has its minimum just above -0.1702."""
KINDS = ("gelu", "gelu_tanh", "quick")
"""Of activations that are made bytes: "quick" is QuickGELU."""
IN_FLOAT32 = ("gelu", "gelu_tanh", "silu")
"""Of activations that stay float32."""


class Bytes(NamedTuple):
    """Tokens in 8 bits. They pass through the views of blocks in the place of float32 tokens."""

    bytes_MK: torch.Tensor
    step_M1: torch.Tensor
    shape: torch.Size
    """All dimensions but the last of what they were."""


class Steps(Protocol):
    """What `Torch` and `Compiled` have in common. All tensors are float32 and contiguous."""

    def lower(self, x_MN: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Bytes (M, N) from 1 to 2 top + 1, which mean -top to top, and the step of each token (M, 1)."""

    def norm_lower(self, x_MN: torch.Tensor, norm: nn.LayerNorm, top: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of the tokens after a layer norm."""

    def activate_lower(
        self, h_MN: torch.Tensor, step_M1: torch.Tensor, bias_N: torch.Tensor, kind: str, top: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Bytes from 0 to `top`, which mean activations plus `SHIFT`, and steps, of h * step + bias; h may be lost."""

    def scale(
        self,
        y_MN: torch.Tensor,
        step_M1: torch.Tensor,
        bias_N: torch.Tensor,
        add_MN: torch.Tensor | None = None,
        out_MN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """y * step + bias, and `add` if there is one, written to `out`; None is in place."""

    def activate(self, h: torch.Tensor, bias_N: torch.Tensor | None, kind: str) -> torch.Tensor:
        """An activation of h + bias, (..., N), in the place of h; `kind` is one of `IN_FLOAT32`."""

    def attend(
        self, q_BANd: torch.Tensor, k_BAMd: torch.Tensor, v_BAMd: torch.Tensor, scale: float | None = None
    ) -> torch.Tensor:
        """softmax(scale q k^T) v, (B, A, N, d); None is 1 / sqrt(d). They may lie with any strides."""


class Torch:
    """The steps in torch."""

    name = "torch"

    def lower(self, x_MN: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
        # Not aminmax, nor a norm: along an axis these are twenty times slower than two reductions.
        peak_M1 = torch.maximum(x_MN.amax(1, keepdim=True), x_MN.amin(1, keepdim=True).neg_()).clamp_(min=TINY)
        # Half a step more, and the cut of the cast to bytes rounds.
        return torch.mul(x_MN, top / peak_M1).add_(top + 1.5).to(torch.uint8), peak_M1 / top

    def norm_lower(self, x_MN: torch.Tensor, norm: nn.LayerNorm, top: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.lower(F.layer_norm(x_MN, norm.normalized_shape, norm.weight, norm.bias, norm.eps), top)

    def activate_lower(
        self, h_MN: torch.Tensor, step_M1: torch.Tensor, bias_N: torch.Tensor, kind: str, top: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        times = QUICK if kind == "quick" else 1.0  # QuickGELU(x) is SiLU(1.702 x) / 1.702, one pass of three
        h_MN = torch.addcmul(bias_N * times, h_MN, step_M1 * times, out=h_MN)
        h_MN = (
            F.silu(h_MN, inplace=True)
            if kind == "quick"
            else torch.ops.aten.gelu_(h_MN, approximate="tanh" if kind == "gelu_tanh" else "none")
        )
        shift = SHIFT * times
        step_M1 = (h_MN.amax(1, keepdim=True) + shift).clamp_(min=TINY) / top
        whole_M1 = (shift / step_M1).floor_()  # a larger step, so that zero is a byte: most activations are next to it
        step_M1 = torch.where(whole_M1 > 0, shift / whole_M1, step_M1)
        bytes_MN = h_MN.mul_(1 / step_M1).add_(shift / step_M1 + 0.5).to(torch.uint8)
        return bytes_MN, step_M1 / times

    def scale(
        self,
        y_MN: torch.Tensor,
        step_M1: torch.Tensor,
        bias_N: torch.Tensor,
        add_MN: torch.Tensor | None = None,
        out_MN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        y_MN = torch.addcmul(bias_N, y_MN, step_M1, out=y_MN if out_MN is None else out_MN)
        return y_MN if add_MN is None else y_MN.add_(add_MN)

    def activate(self, h: torch.Tensor, bias_N: torch.Tensor | None, kind: str) -> torch.Tensor:
        h = h if bias_N is None else h.add_(bias_N)
        if kind == "silu":
            return F.silu(h, inplace=True)
        return torch.ops.aten.gelu_(h, approximate="tanh" if kind == "gelu_tanh" else "none")

    def attend(
        self, q_BANd: torch.Tensor, k_BAMd: torch.Tensor, v_BAMd: torch.Tensor, scale: float | None = None
    ) -> torch.Tensor:
        return F.scaled_dot_product_attention(q_BANd, k_BAMd, v_BAMd, scale=scale)


class _Product(ctypes.Structure):
    """`Product` of steps.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "w", "bias", "add", "out")),
        *((name, ctypes.c_long) for name in ("rows", "columns", "depth")),
    )


class _Heads(ctypes.Structure):
    """`Heads` of steps.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out")),
        ("sizes", ctypes.c_long * 5),
        *((f"{name}_strides", ctypes.c_long * 3) for name in "qkv"),
        ("runs", ctypes.c_long),
        ("scale", ctypes.c_float),
    )


class _Job(ctypes.Structure):
    """`Job` of steps.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "step", "weight", "bias", "add", "out", "steps", "bytes")),
        *((name, ctypes.c_void_p) for name in ("heads", "product")),
        *((name, ctypes.c_long) for name in ("rows", "width")),
        *((name, ctypes.c_float) for name in ("top", "epsilon")),
        ("kind", ctypes.c_int),
    )


class Compiled:
    """The steps in C, whose rows are shared out among torch's threads."""

    name = "C"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        runtime = ctypes.CDLL(torch._C.__file__)  # finds what torch itself is linked with, its OpenMP too
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        if all(hasattr(runtime, name) for name in names):
            library.set_threads(*(ctypes.cast(getattr(runtime, name), ctypes.c_void_p) for name in names))

    def lower(self, x_MN: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._to_bytes("lower", x_MN, top=top)

    def norm_lower(self, x_MN: torch.Tensor, norm: nn.LayerNorm, top: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._to_bytes("norm_lower", x_MN, weight=norm.weight, bias=norm.bias, epsilon=norm.eps, top=top)

    def activate_lower(
        self, h_MN: torch.Tensor, step_M1: torch.Tensor, bias_N: torch.Tensor, kind: str, top: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._to_bytes("activate_lower", h_MN, step=step_M1, bias=bias_N, kind=KINDS.index(kind), top=top)

    def scale(
        self,
        y_MN: torch.Tensor,
        step_M1: torch.Tensor,
        bias_N: torch.Tensor,
        add_MN: torch.Tensor | None = None,
        out_MN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        out_MN = y_MN if out_MN is None else out_MN
        self._call("scale", y_MN, step=step_M1, bias=bias_N, add=add_MN, out=out_MN)
        return out_MN

    def activate(self, h: torch.Tensor, bias_N: torch.Tensor | None, kind: str) -> torch.Tensor:
        self._call("activate", h.view(-1, h.shape[-1]), bias=bias_N, kind=IN_FLOAT32.index(kind))
        return h

    def attend(
        self, q_BANd: torch.Tensor, k_BAMd: torch.Tensor, v_BAMd: torch.Tensor, scale: float | None = None
    ) -> torch.Tensor:
        batch, heads, queries, width = q_BANd.shape
        out_BNAd = q_BANd.new_empty(batch, queries, heads, width)
        runs = min(queries, -(-2 * torch.get_num_threads() // (batch * heads)))  # something for every thread
        job = _Heads(
            out=out_BNAd.data_ptr(),
            sizes=(batch, heads, queries, k_BAMd.shape[2], width),
            runs=runs,
            scale=width**-0.5 if scale is None else scale,
        )
        parts = [part if part.stride(3) == 1 else part.contiguous() for part in (q_BANd, k_BAMd, v_BAMd)]
        for name, part in zip("qkv", parts, strict=True):
            setattr(job, name, part.data_ptr())
            setattr(job, f"{name}_strides", part.stride()[:3])
        self._run("attend", _Job(heads=ctypes.addressof(job), rows=batch * heads * runs))
        return out_BNAd.transpose(1, 2)

    def lay_out(self, weight_NK: torch.Tensor) -> torch.Tensor:
        """Weights as `product` takes them, a copy: (panels, K, outputs of one), with zeros for what lies beyond N."""
        width = self._library.panel()
        missing = -len(weight_NK) % width
        return F.pad(weight_NK, (0, 0, 0, missing)).unflatten(0, (-1, width)).mT.contiguous()

    def product(
        self,
        x_MK: torch.Tensor,
        laid_PKn: torch.Tensor,
        bias_N: torch.Tensor,
        kind: str | None = None,
        add_MN: torch.Tensor | None = None,
        out_MN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """An activation, of `IN_FLOAT32` or None, of x w^T + bias, and `add` on top, written to `out`: (M, N)."""
        (count, depth), columns = x_MK.shape, len(bias_N)
        out_MN = x_MK.new_empty(count, columns) if out_MN is None else out_MN
        bias = F.pad(bias_N, (0, laid_PKn.shape[0] * laid_PKn.shape[2] - columns))
        product = _Product(rows=count, columns=columns, depth=depth)
        for name, part in zip(("x", "w", "bias", "add", "out"), (x_MK, laid_PKn, bias, add_MN, out_MN), strict=True):
            setattr(product, name, None if part is None else part.data_ptr())
        of = len(IN_FLOAT32) if kind is None else IN_FLOAT32.index(kind)
        blocks = -(-count // self._library.rows_of_product())
        self._run("product", _Job(product=ctypes.addressof(product), rows=blocks, kind=of))
        return out_MN

    def _to_bytes(self, name: str, x_MN: torch.Tensor, **given: object) -> tuple[torch.Tensor, torch.Tensor]:
        bytes_MN, step_M1 = torch.empty_like(x_MN, dtype=torch.uint8), x_MN.new_empty(len(x_MN), 1)
        self._call(name, x_MN, bytes=bytes_MN, steps=step_M1, **given)
        return bytes_MN, step_M1

    def _call(self, name: str, x_MN: torch.Tensor, **given: object) -> None:
        job = _Job(x=x_MN.data_ptr(), rows=x_MN.shape[0], width=x_MN.shape[1])
        for field, value in given.items():
            setattr(job, field, value.data_ptr() if isinstance(value, torch.Tensor) else value)
        self._run(name, job)

    def _run(self, name: str, job: _Job) -> None:
        getattr(self._library, name)(ctypes.byref(job), torch.get_num_threads())
