"""The most alike rows of a memory: `nearest`."""

from __future__ import annotations

import torch

from densevl.kernels.common import empty, need, runs, types, wide
from densevl.kernels.dispatch import runs_kernel

MEMORY_ROWS, QUERIES = 4096, 1024  # similarities held at once
LEAST_MEMORY = 4096  # rows for which the kernel is worth it


def nearest(x: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most alike memory row of every row, by dot product, without the P x M similarities.

    Args:
        x: (P, D); memory: (M, D). For cosines give unit rows.

    Returns:
        similarity (P,) float32 and index (P,) int64, the smallest among equals; -inf and -1 where M = 0.

    Raises:
        KernelError: the widths differ.
    """
    need(x.ndim == 2, "x", x, "(P, D)")
    need(memory.ndim == 2 and memory.shape[1] == x.shape[1], "memory", memory, "(M, {})", x.shape[1])

    rows = memory.shape[0]
    if runs_kernel(
        "nearest",
        (x, memory),
        lambda: types(x, memory) or empty(x, memory),
        lambda: f"{rows} rows of memory are few" if rows < LEAST_MEMORY else None,
    ):
        from densevl.kernels.triton.neighbours import nearest as kernel

        return kernel(x, memory)

    x, memory = wide(x), wide(memory)
    similarity = torch.full((x.shape[0],), -torch.inf, device=x.device)
    index = torch.full((x.shape[0],), -1, dtype=torch.int64, device=x.device)
    for own in runs(x.shape[0], QUERIES):
        for part in runs(rows, MEMORY_ROWS):
            best, which = (x[own] @ memory[part].mT).max(dim=1)
            better = best > similarity[own]
            similarity[own] = torch.where(better, best.float(), similarity[own])
            index[own] = torch.where(better, which + part.start, index[own])
    return similarity, index
