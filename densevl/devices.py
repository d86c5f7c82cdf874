"""Where a model runs: on the device asked for, else on CUDA where there is one, else on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from densevl.errors import OptionError

if TYPE_CHECKING:
    import torch


def default(rank: int | None = None) -> str:
    """CUDA where there is one, else the CPU.

    Args:
        rank: of a process among several on this machine, which share its CUDA devices in turn.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return "cuda" if rank is None else f"cuda:{rank % torch.cuda.device_count()}"


def choose(device: str | torch.device | None = None) -> str:
    """The device asked for, None takes the default, after a try whether it can be used.

    Raises:
        OptionError: it cannot.
    """
    import torch

    chosen = default() if device is None else str(device)
    try:
        if torch.empty(0, device=chosen).is_meta:
            raise TypeError("it holds no values")
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises an assertion where CUDA is not built in
        reason = str(error).strip().split("\n")[0]
        raise OptionError(f"device '{chosen}' cannot be used here ({reason}); take 'cpu'") from error
    return chosen
