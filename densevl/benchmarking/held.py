"""The memory that a model holds: its tensors and arrays, each counted once."""

from __future__ import annotations

import gc
import types
from typing import Any

import numpy as np
import torch

APART = (types.ModuleType, types.FunctionType, type)
"""What leads from one object to everything there is."""


def held_mib(*roots: Any) -> float:
    """MiB of all tensors and arrays that can be reached from some objects; shared memory counts once.

    Closures are passed over, and so is what a library holds in objects of its own.
    """
    seen: set[int] = set()
    sizes: dict[int, int] = {}
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, APART):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            sizes.update(_storage(one))
        elif isinstance(one, np.ndarray) and one.base is None:
            sizes[id(one)] = one.nbytes
        waiting.extend(gc.get_referents(one))
    return sum(sizes.values()) / 2**20


def _storage(tensor: torch.Tensor) -> dict[int, int]:
    """Where its numbers lie, and how many bytes."""
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # a layout of a library's own
        return {id(tensor): tensor.numel() * tensor.element_size()}
    return {storage.data_ptr(): storage.nbytes()}
