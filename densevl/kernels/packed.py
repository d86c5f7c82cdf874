"""Linear layers in float32 with weights in the order that the library which multiplies wants: `pack`.

A product of plain weights puts them in that order at every call, a few per cent of its time. Both of torch's libraries
can be given them so: oneDNN by an operator of torch's, MKL by its own functions, which torch's library carries along.
A product in C (`compiled/steps.c`) takes bias, activation and sum from registers. Which of them is faster is measured
once a process. All multiply each token for itself, whatever is beside it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self

import torch

from densevl.kernels.common import need
from densevl.kernels.compiled.compiling import steps
from densevl.kernels.compiled.steps import Compiled
from densevl.kernels.dispatch import KernelError
from densevl.kernels.linear import onednn_linear
from densevl.kernels.timing import is_faster

MARGIN = 0.97
"""Share of the time of the best before it, of C, oneDNN and MKL, that one must stay under to be taken."""
TRIED = (296, 768, 3072)  # M, K, N: the first layer of a ViT-B/16's MLP over a window and a half
ROW_MAJOR, PLAIN, TRANSPOSED, IS_PACKED, OF_B = 101, 111, 112, 151, 162  # as MKL's header names them
ALIGNED = 64


class Packed(Protocol):
    """Weights (N, K) in a library's order."""

    outputs: int
    inputs: int

    def linear(
        self,
        x_MK: torch.Tensor,
        bias_N: torch.Tensor,
        then: str | None,
        add_MN: torch.Tensor | None = None,
        out_MN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(M, N): the product, the bias, an activation of `kernels.linear` or None, and what is added on top.

        All are contiguous float32; the result is written to `out`, which may be `add`.
        """


def pack(weight: torch.Tensor) -> Packed:
    """Copy weights (N, K) float32 on the CPU into the order of the library that is faster here.

    Raises:
        KernelError: shapes that do not fit, or no library takes such weights; with the way out.
    """
    need(weight.dim() == 2 and weight.numel() > 0, "weight", weight, "(N, K)")
    kind = _library()
    if kind is None:
        raise KernelError("this PyTorch has neither MKL's nor oneDNN's packed weights; take precision 'float32'")
    return kind(weight.detach().contiguous())


def library() -> str | None:
    """The name of the library that multiplies packed weights here; None where there is none."""
    kind = _library()
    return None if kind is None else kind.name


class _Kept:
    """What nothing changes, and holds addresses of this process."""

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise KernelError("packed weights cannot be sent to another process: load the model there")


class _OneDnn(_Kept):
    name = "oneDNN"

    def __init__(self, weight: torch.Tensor) -> None:
        self.outputs, self.inputs = weight.shape
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def linear(
        self,
        x_MK: torch.Tensor,
        bias_N: torch.Tensor,
        then: str | None,
        add_MN: torch.Tensor | None = None,
        out_MN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return _summed(onednn_linear(x_MK, self._weight, bias_N, then), add_MN, out_MN)


class _Mkl(_Kept):
    name = "MKL"

    def __init__(self, weight: torch.Tensor) -> None:
        self.outputs, self.inputs = weight.shape
        library, sizes = _mkl(), (1, self.outputs, self.inputs)  # how many tokens there will be changes nothing
        held = library.cblas_sgemm_pack_get_size(OF_B, *sizes)
        self._room = torch.empty(held + ALIGNED, dtype=torch.uint8)
        self._at = -(-self._room.data_ptr() // ALIGNED) * ALIGNED
        library.cblas_sgemm_pack(
            *(ROW_MAJOR, OF_B, TRANSPOSED, *sizes, ctypes.c_float(1), ctypes.c_void_p(weight.data_ptr())),
            *(self.inputs, ctypes.c_void_p(self._at)),
        )

    def linear(
        self,
        x_MK: torch.Tensor,
        bias_N: torch.Tensor,
        then: str | None,
        add_MN: torch.Tensor | None = None,
        out_MN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        y_MN = x_MK.new_empty(len(x_MK), self.outputs)
        if then is None:
            y_MN.copy_(bias_N)
        _mkl().cblas_sgemm_compute(
            *(ROW_MAJOR, PLAIN, IS_PACKED, len(x_MK), self.outputs, self.inputs),
            *(ctypes.c_void_p(x_MK.data_ptr()), self.inputs, ctypes.c_void_p(self._at), self.inputs),
            *(ctypes.c_float(then is None), ctypes.c_void_p(y_MN.data_ptr()), self.outputs),
        )
        return _summed(y_MN if then is None else steps().activate(y_MN, bias_N, then), add_MN, out_MN)


class _C(_Kept):
    name = "C"

    def __init__(self, weight: torch.Tensor) -> None:
        made = steps()
        if not isinstance(made, Compiled):
            raise RuntimeError("no compiler")
        self.outputs, self.inputs = weight.shape
        self._steps, self._weight = made, made.lay_out(weight)

    def linear(
        self,
        x_MK: torch.Tensor,
        bias_N: torch.Tensor,
        then: str | None,
        add_MN: torch.Tensor | None = None,
        out_MN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self._steps.product(x_MK, self._weight, bias_N, then, add_MN, out_MN)


def _summed(y: torch.Tensor, add: torch.Tensor | None, out: torch.Tensor | None) -> torch.Tensor:
    if add is not None:
        return torch.add(y, add, out=y if out is None else out)
    return y if out is None else out.copy_(y)


@cache
def _mkl() -> Any:
    """The functions of MKL that torch's library carries.

    Raises:
        OSError, AttributeError: it carries none.
    """
    found = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    found.cblas_sgemm_pack_get_size.restype = ctypes.c_size_t
    found.cblas_sgemm_pack.restype = found.cblas_sgemm_compute.restype = None
    return found


@cache
def _library() -> type[_OneDnn | _Mkl | _C] | None:
    """The fastest of those that multiply rightly here."""
    count, inputs, outputs = TRIED
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, inputs, generator=generator) for rows in (count, outputs))
    bias = torch.randn(outputs, generator=generator)
    calls: dict[type[_OneDnn | _Mkl | _C], Callable[[], torch.Tensor]] = {}
    best = None
    with torch.inference_mode():
        want = torch.nn.functional.linear(x, weight, bias)
        for kind in (_C, _OneDnn, _Mkl):
            try:
                packed = kind(weight)
                if torch.allclose(packed.linear(x, bias, None), want, rtol=1e-4, atol=1e-3):
                    calls[kind] = partial(packed.linear, x, bias, "gelu")
            except (OSError, AttributeError, RuntimeError, TypeError):  # a torch without it, or another one
                continue
        for kind, call in calls.items():
            if best is None or is_faster(call, calls[best], MARGIN):
                best = kind
    return best
