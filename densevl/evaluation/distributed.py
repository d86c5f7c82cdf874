"""One process or many: rank, barrier and sums of integer counts, over gloo.

Counts are in main memory, on GPU machines too, so gloo serves both; each process has its own device for the model.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import distributed

from densevl import devices
from densevl.errors import EvaluationError

LAUNCHERS = ("none", "pytorch")


def join(launcher: str) -> None:
    """Join the group of processes that a launcher started.

    Raises:
        EvaluationError: the launcher is unknown, or is "pytorch" without torchrun.
    """
    if launcher == "none" or distributed.is_initialized():
        return
    if launcher not in LAUNCHERS:
        raise EvaluationError(f"no launcher '{launcher}'; it is one of {', '.join(LAUNCHERS)}")
    if "RANK" not in os.environ:
        raise EvaluationError("launcher 'pytorch' needs torchrun: torchrun --nproc-per-node 2 tools/test.py CONFIG ...")
    distributed.init_process_group("gloo")


def leave() -> None:
    """Leave the group, if any."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    """Number of this process; 0 if there is only one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def device() -> str | None:
    """The device of this process; None if it is alone and may choose."""
    return None if world() == 1 else devices.default(int(os.environ.get("LOCAL_RANK", 0)))


def barrier() -> None:
    """Wait for all processes."""
    if world() > 1:
        # `distributed.barrier` is not used: its thread releases earlier tensors, for which it takes the interpreter's
        # lock, and a process that ends meanwhile aborts.
        distributed.monitored_barrier()


def summed(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The sum over processes, on each of them, exact for integers."""
    if world() == 1:
        return array
    wide = array.astype(np.int64) if array.dtype == bool else array
    tensor = torch.from_numpy(np.ascontiguousarray(wide).copy())
    distributed.all_reduce(tensor)
    return tensor.numpy().astype(array.dtype)
