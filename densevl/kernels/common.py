"""What the operators share: checks of shapes, runs of rows, half precision on the CPU, and what no kernel takes."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from densevl.kernels.dispatch import KernelError, mode, wants_gradients

HALF = (torch.float16, torch.bfloat16)
QUICK = 1.702
"""QuickGELU is x sigmoid(1.702 x), which is SiLU of 1.702 x, over 1.702."""
MaybeTensor = TypeVar("MaybeTensor", torch.Tensor, torch.Tensor | None)


def need(holds: bool, name: str, tensor: torch.Tensor, wanted: str, *sizes: Any) -> None:
    """Raise KernelError unless it holds; `sizes` go into `wanted` only then, as a graph cannot print symbolic sizes."""
    if not holds:
        said = wanted.format(*(tuple(size) if isinstance(size, torch.Size) else size for size in sizes))
        raise KernelError(f"{name} has shape {tuple(tensor.shape)}; wanted {said}")


def wide(tensor: MaybeTensor) -> MaybeTensor:
    """Half precision on the CPU made float32; anything else as it is."""
    if tensor is None or tensor.dtype not in HALF or tensor.device.type != "cpu":
        return tensor
    return tensor.float()


def captured() -> bool:
    """Whether a graph of what runs is being made, or operators are followed, which are then to be torch's own."""
    return (
        torch.compiler.is_compiling()
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0  # as torch.utils.flop_counter does
        or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def may_leave_torch(*tensors: torch.Tensor | None) -> bool:
    """Whether another library's code, or C, may compute with these: plain float32 on the CPU, for inference alone."""
    return (
        not captured()  # first: a size that is asked becomes a bound of the graph
        and all(tensor is None or _is_plain(tensor) for tensor in tensors)
        and not wants_gradients(tensors)
        and not torch.is_autocast_enabled("cpu")
        and mode() != "torch"
    )


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.numel() > 0
        and not tensor.is_neg()
    )


def runs(total: int, most: int, whole: int = 0) -> list[slice]:
    """Runs of at most `most` of `total` rows, at least one each, or one run if they are up to `whole`.

    In a graph that is exported it is one run: the number of rows may be a symbol there, the number of runs may not.
    """
    if torch.compiler.is_exporting() or 0 < total <= whole:
        return [slice(0, total)]
    most = max(most, 1)
    return [slice(start, min(start + most, total)) for start in range(0, total, most)]


def types(*tensors: torch.Tensor) -> str | None:
    """Why a kernel for half precision cannot take the types of these, or None."""
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) > 1:
        return "tensors differ in type: " + ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    kind = tensors[0].dtype
    # The interpreter's products are exact.
    if kind in HALF or (kind == torch.float32 and tensors[0].device.type == "cpu"):
        return None
    return f"{str(kind).removeprefix('torch.')} is not taken; give float16 or bfloat16"


def empty(*tensors: torch.Tensor) -> str | None:
    """Why a kernel cannot run over these, if one has no entries."""
    return "a tensor is empty" if any(tensor.numel() == 0 for tensor in tensors) else None


def mix_limit(unit: torch.Tensor, factor: float, cap: float, negative: float | None) -> torch.Tensor:
    """The cosine each token must pass in `affinity_mix`, from unit values (B, A, n, d): (B, n)."""
    limit = factor * torch.einsum("band,bad->ban", unit, unit.mean(dim=2)).mean(dim=1)
    if negative is not None:
        limit = torch.where(limit < 0, negative, limit)
    return limit.clamp(max=cap)
