"""Which implementation an operator runs: torch, or a Triton kernel where one can run and is worth it.

`DENSEVL_KERNELS` is `auto` (the default), `torch` or `triton`. `auto` takes a kernel on a CUDA device of compute
capability 8.0 or more and torch elsewhere. `triton` runs the kernel or raises `KernelUnavailable` with the reason; with
`TRITON_INTERPRET=1` it also runs on the CPU, slowly, for tests. `use("torch")` is the same choice for a block of code.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from densevl.errors import DensevlError, suggest

MODES = ("auto", "torch", "triton")
VARIABLE = "DENSEVL_KERNELS"
LEAST_CAPABILITY = (8, 0)
_asked: ContextVar[str | None] = ContextVar("densevl_kernels", default=None)


class KernelError(DensevlError):
    """An operator was given tensors that do not fit each other, or a mode that does not exist."""


class KernelUnavailable(KernelError):
    """A Triton kernel was asked for by name and cannot run; the message says why."""


@dataclass(frozen=True)
class Choice:
    """What an operator runs. Attributes: kernel, whether it is the Triton kernel; reason, in words."""

    kernel: bool
    reason: str


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    Attributes:
        reference: the torch implementation, which is the specification and the path on the CPU.
        module: where the function of the same name launches the kernel; imported when first run.
        unable: says why the kernel cannot take these arguments, or None.
        idle: says why the kernel is not worth it for them, or None; not asked when Triton is forced.
    """

    name: str
    reference: Callable[..., Any]
    module: str
    unable: Callable[..., str | None]
    idle: Callable[..., str | None]

    def choose(self, tensors: tuple[torch.Tensor, ...], *args: Any, **keywords: Any) -> Choice:
        """Decide for these arguments.

        Args:
            tensors: those of the arguments that may carry gradients; the first one's device counts.

        Raises:
            KernelUnavailable: Triton is forced and cannot run. KernelError: the mode is unknown.
        """
        asked = mode()
        if asked == "torch":
            return Choice(False, "torch was asked for")
        forced = asked == "triton"
        why = _machine(tensors[0].device, forced) or _why_torch(tensors) or self.unable(*args, **keywords)
        if why is None and not forced:
            why = self.idle(*args, **keywords)
        if why is None:
            return Choice(True, "the kernel takes these arguments")
        if forced:
            raise KernelUnavailable(f"no Triton kernel for {self.name}: {why}; {VARIABLE}=auto falls back to torch")
        return Choice(False, why)

    def launch(self, *args: Any, **keywords: Any) -> Any:
        """Run the kernel."""
        return getattr(importlib.import_module(self.module), self.name)(*args, **keywords)


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


def interpreting() -> bool:
    """Whether Triton interprets kernels on the CPU instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _machine(device: torch.device, forced: bool) -> str | None:
    if device.type == "cpu":
        if not forced:
            return "tensors are on the CPU"
        if not interpreting():
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


def wants_gradients(tensors: tuple[torch.Tensor, ...]) -> bool:
    """Whether what comes of these tensors is to be differentiated."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _why_torch(tensors: tuple[torch.Tensor, ...]) -> str | None:
    if wants_gradients(tensors):
        return "gradients are asked for and kernels have no backward pass; use torch.no_grad()"
    return None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _warn_once() -> None:
    warnings.warn("CUDA is here but the package 'triton' is not: operators run in plain torch", stacklevel=2)
