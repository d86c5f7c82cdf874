"""Which implementation an operator runs: torch, or a Triton kernel where one can run and is worth it.

`DENSEVL_KERNELS` is `auto` (the default), `torch` or `triton`. `auto` takes a kernel on a CUDA device of compute
capability 8.0 or more and torch elsewhere. `triton` runs the kernel or raises `KernelUnavailable` with the reason; with
`TRITON_INTERPRET=1` it also runs on the CPU, slowly, for tests. `use("torch")` is the same choice for a block of code.

Under torch.compile the choice is made when the graph is captured: torch's operators are captured one by one, a kernel
is one node. `torch.export` always captures torch's, so an exported program needs no densevl where it runs.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from densevl.errors import DensevlError, suggest

MODES = ("auto", "torch", "triton")
VARIABLE = "DENSEVL_KERNELS"
LEAST_CAPABILITY = (8, 0)
_asked: ContextVar[str | None] = ContextVar("densevl_kernels", default=None)
_explaining: ContextVar[bool] = ContextVar("densevl_explaining", default=False)


class KernelError(DensevlError):
    """An operator was given tensors that do not fit each other, or a mode that does not exist."""


class KernelUnavailable(KernelError):
    """A Triton kernel was asked for by name and cannot run; the message says why."""


@dataclass(frozen=True)
class Choice:
    """What an operator runs. Attributes: kernel, whether it is the Triton kernel; reason, in words."""

    kernel: bool
    reason: str


def mode() -> str:
    """The mode in force: that of the innermost `use`, else `DENSEVL_KERNELS`, else "auto"."""
    return _checked(_asked.get() or os.environ.get(VARIABLE) or "auto")


@contextmanager
def use(asked: str) -> Iterator[None]:
    """Run a block in one mode, whatever the environment says.

    Raises:
        KernelError: the mode is unknown.
    """
    token = _asked.set(_checked(asked))
    try:
        yield
    finally:
        _asked.reset(token)


def _checked(asked: str) -> str:
    if asked not in MODES:
        raise KernelError(f"unknown kernel mode '{asked}'; choose auto, torch or triton{suggest(asked, MODES)}")
    return asked


def runs_kernel(
    operator: str,
    tensors: tuple[torch.Tensor, *tuple[torch.Tensor | None, ...]],
    cannot: Callable[[], str | None],
    idle: Callable[[], str | None] | None = None,
) -> bool:
    """Whether an operator runs its kernel.

    Args:
        tensors: the arguments that may carry gradients; the first one's device counts.
        cannot: why the kernel cannot take the arguments, or None; asked only where kernels run at all.
        idle: why it is not worth it, or None; not asked when Triton is forced.

    Raises:
        KernelUnavailable: Triton is forced and cannot run.
        KernelError: the mode is unknown.
    """
    asked = mode()
    forced = asked == "triton"
    if asked == "torch":
        why: str | None = "torch was asked for"
    elif torch.compiler.is_exporting():
        why = "an exported program holds torch's operators alone"
    else:
        why = _machine(tensors[0].device, forced)
        if why is None and wants_gradients(tensors):
            why = "gradients are asked for and kernels have no backward pass; use torch.no_grad()"
        why = why or cannot() or (None if forced or idle is None else idle())
    if why is not None and forced:
        raise KernelUnavailable(f"no Triton kernel for {operator}: {why}; {VARIABLE}=auto falls back to torch")
    if _explaining.get():
        raise _Explained(Choice(why is None, why or "the kernel takes these arguments"))
    return why is None


class _Explained(Exception):
    """Ends an operator that `explain` called, once it has chosen."""


def explain(operator: Callable[..., Any], *args: Any, **keywords: Any) -> Choice:
    """What an operator would run for these arguments, and why; nothing is computed.

    Raises:
        KernelError: the arguments do not fit each other, or the mode is unknown. KernelUnavailable: Triton is forced
            and cannot run.
    """
    token = _explaining.set(True)
    try:
        operator(*args, **keywords)
    except _Explained as answer:
        return answer.args[0]
    finally:
        _explaining.reset(token)
    raise KernelError(f"{operator!r} is not an operator of densevl.kernels")


Function = TypeVar("Function", bound=Callable[..., Any])


def constant(function: Function) -> Function:
    """Mark a function whose answer torch.compile takes as a constant, instead of looking into it.

    This is torch.compiler.assume_constant_result without the second that importing torch._dynamo takes.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def wants_gradients(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Whether what comes of these tensors is to be differentiated."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


@constant
def _machine(device: torch.device, forced: bool) -> str | None:
    """Why no kernel runs on a device, or None."""
    if device.type == "cpu":
        if not forced:
            return "tensors are on the CPU"
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "tensors are on the CPU, where kernels run only with TRITON_INTERPRET=1"
        return None if _has_triton() else "the package 'triton' is not installed"
    if device.type != "cuda":
        return f"kernels are for CUDA, not for '{device.type}'"
    if torch.version.hip is not None:
        return "kernels have not been run on AMD devices"
    if not _has_triton():
        if not forced:
            _warn_once()
        return "the package 'triton' is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return (
            f"compute capability {capability[0]}.{capability[1]} is under {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}"
        )
    return None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _warn_once() -> None:
    warnings.warn("CUDA is here but the package 'triton' is not: operators run in plain torch", stacklevel=2)
