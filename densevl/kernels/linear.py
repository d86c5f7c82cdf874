"""Linear layers in float32: `linear`, on a CPU by whichever of torch's two libraries multiplies faster there.

torch leaves float32 to MKL. On some CPUs that uses half of the vector unit, as on those of AMD with AVX-512, and
oneDNN, which torch brings along for other types, all of it; on others they are level. One short measurement a process
decides, with a margin, so that a machine gives the same numbers every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from densevl.kernels.common import captured, may_leave_torch, need
from densevl.kernels.compiled.compiling import steps
from densevl.kernels.dispatch import constant, mode
from densevl.kernels.timing import is_faster

PLAIN = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
ACTIVATIONS = {None: ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "silu": ("swish", "")}
"""And what oneDNN calls them."""
LEAST = 2**15  # numbers of the weights, not of a product: a token's library is not to hang on what is beside it
MARGIN = 0.8  # of the other's time
TRIED = (256, 768, 768)  # M, N, K


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    then: str | None = None,
    *,
    times: float = 1.0,
) -> torch.Tensor:
    """`F.linear` of `times` x, and an activation: (..., K) to (..., N).

    Args:
        weight: (N, K), or (K,) to (...). bias: (N,), or what `F.linear` adds.
        then: None, "gelu", "gelu_tanh" or "silu".
        times: a factor on x W^T, which costs nothing where MKL multiplies.

    Raises:
        KernelError: shapes that do not fit.
    """
    need(weight.dim() in (1, 2), "weight", weight, "(N, K)")
    need(x.dim() > 0 and x.shape[-1] == weight.shape[-1], "x", x, "(..., {})", weight.shape[-1])
    if bias is not None and bias.dim() > 0 and weight.dim() > 1:
        need(bias.shape[-1] in (1, weight.shape[0]), "bias", bias, "({},)", weight.shape[0])
    if then is not None and runs_mkl(x, weight, bias):  # bias and activation in one pass
        y = x.new_empty(*x.shape[:-1], len(weight))
        torch.addmm(y.view(-1, len(weight)), _rows(x), weight.t(), beta=0, alpha=times, out=y.view(-1, len(weight)))
        return steps().activate(y, bias, then)
    if times != 1:
        if then is None:
            return linear(x, weight, None if bias is None else bias / times) * times
        x = x * times
    if runs_onednn(x, weight, bias):
        return onednn_linear(x, weight, bias, then)
    y = F.linear(x, weight, bias)
    if then is None:
        return y
    if y.requires_grad or captured():
        return F.silu(y) if then == "silu" else F.gelu(y, approximate="tanh" if then == "gelu_tanh" else "none")
    return F.silu(y, inplace=True) if then == "silu" else torch.ops.aten.gelu_(y, approximate=ACTIVATIONS[then][1])


def add_linear(
    add: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    times: float = 1.0,
    in_place: bool = False,
) -> torch.Tensor:
    """`add` (..., N) and `linear` of `times` x without an activation on top of it; MKL adds while it multiplies.

    Args:
        in_place: the sum is written to `add`, which is contiguous then.
    """
    if runs_mkl(x, weight, bias) and may_leave_torch(add) and (*x.shape[:-1], len(weight)) == add.shape:
        out = add if in_place else torch.empty_like(add, memory_format=torch.contiguous_format)
        if bias is not None:
            torch.add(add, bias, out=out)
        elif not in_place:
            out.copy_(add)
        out.view(-1, len(weight)).addmm_(_rows(x), weight.t(), alpha=times)
        return out
    y = linear(x, weight, bias, times=times)
    return add.add_(y) if in_place else add + y


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def through(layer: nn.Module, x: torch.Tensor, add: torch.Tensor | None = None) -> torch.Tensor:
    """What a layer makes of x, (..., D), and `add` of that shape: by `linear` if it is plain, else as it is.

    A layer that says that it `adds` takes what is added itself.
    """
    if add is not None and getattr(layer, "adds", False):
        return layer(x, add=add)
    if captured() or not is_plain(layer):
        return layer(x) if add is None else layer(x) + add
    weight, bias = layer.weight, layer.bias
    return linear(x, weight, bias) if add is None else add_linear(add, x, weight, bias)  # type: ignore[arg-type]


@contextmanager
def diverted() -> Iterator[None]:
    """Run modules of others within, whose products then go through `linear`: where that changes anything, only."""
    if captured() or mode() == "torch" or not onednn_is_faster():
        yield
        return
    with _Diverted():
        yield


class _Diverted(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is F.linear and "input" not in given:
            return linear(*args, **given)
        return func(*args, **given)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is torch's own linear one, and nobody changed how it is called."""
    return type(layer) in PLAIN and not is_watched(layer)


def is_watched(module: nn.Module) -> bool:
    """Whether a module is to be called as it is, as are all its parts.

    So it is where anything hooked itself to it, to a part or to all modules, where a part's `forward` was replaced, and
    where a part is in training, as dropout may be on its own.
    """
    hooks = nn.modules.module
    return bool(
        hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    ) or any(
        part.training
        or "forward" in part.__dict__
        or part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        for part in module.modules()
    )


def runs_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether `linear` leaves a product to oneDNN."""
    return _is_worth_leaving(x, weight, bias) and torch._C._get_mkldnn_enabled() and onednn_is_faster()


def runs_mkl(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether a product is torch's own, and what else is computed with it need not be."""
    return _is_worth_leaving(x, weight, bias) and not runs_onednn(x, weight, bias)


def _is_worth_leaving(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether something else than torch's own operator may run, and is worth the call."""
    return may_leave_torch(x, weight, bias) and _is_dense(weight, bias) and weight.numel() >= LEAST


def _is_dense(weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether oneDNN reads these as they lie; it reads a bias with gaps as one without, and past its end."""
    if weight.dim() != 2 or min(weight.stride()) != 1 or max(weight.stride()) < min(weight.shape):
        return False
    return bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous())


def onednn_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, then: str | None = None
) -> torch.Tensor:
    """oneDNN's product, bias and activation; `weight` may be in its own order."""
    kind, algorithm = ACTIVATIONS[then]
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, [], algorithm)


@constant
@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 in well under MKL's time here, and gives the same."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    count, outputs, inputs = TRIED
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, inputs, generator=generator) for rows in (count, outputs))
    bias = torch.randn(outputs, generator=generator)
    with torch.inference_mode():
        try:
            found, want = onednn_linear(x, weight, bias), F.linear(x, weight, bias)
        except (RuntimeError, TypeError):  # another torch, whose operator takes other arguments
            return False
        return torch.allclose(found, want, rtol=1e-4, atol=1e-3) and is_faster(
            lambda: onednn_linear(x, weight, bias), lambda: F.linear(x, weight, bias), MARGIN
        )
