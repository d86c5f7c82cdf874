"""Tile sizes, warps and pipeline stages of every kernel, per architecture: one table, read by launches and by the
compile gate alike, so that nothing runs that nobody compiled. Compute capabilities 9 and 10 take the rows of 90, all
others those of 80.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ALIGNMENT = 16  # bytes a thread loads at once, and what Triton asks of a pointer
ENTRIES = 16  # what it asks of a stride, whatever the type


@dataclass(frozen=True)
class Tile:
    """Attributes: block, the tile's sides in the kernel's own order; warps per program; stages of the main loop."""

    block: tuple[int, ...]
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """Keywords of a launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}


TILES: dict[tuple[str, str], dict[int, Tile]] = {
    # classes per step; the 64 pixels come from the plan's tiling
    ("decode", "best"): {80: Tile((32,), 4, 2), 90: Tile((32,), 4, 2)},
    ("decode", "lse"): {80: Tile((32,), 4, 2), 90: Tile((32,), 4, 2)},
    # queries, grid rows of keys, columns of keys; without a bias the grid is one column
    ("attention", "plain"): {80: Tile((64, 64, 1), 4, 2), 90: Tile((64, 64, 1), 4, 2)},
    ("attention", "narrow"): {80: Tile((128, 2, 32), 8, 3), 90: Tile((128, 2, 32), 8, 3)},
    ("attention", "wide"): {80: Tile((128, 1, 64), 8, 3), 90: Tile((128, 1, 64), 8, 3)},
    ("attention", "rel-narrow"): {80: Tile((64, 1, 32), 4, 2), 90: Tile((64, 1, 32), 4, 2)},
    ("attention", "rel-wide"): {80: Tile((64, 1, 64), 4, 2), 90: Tile((64, 1, 64), 4, 2)},
    # three stages at width 128 outgrow sm_90's share of shared memory; two at 32 make ptxas spill for occupancy's sake
    ("attention", "narrow d128"): {80: Tile((128, 2, 32), 8, 3), 90: Tile((128, 2, 32), 8, 2)},
    ("attention", "wide d128"): {80: Tile((128, 1, 64), 8, 3), 90: Tile((128, 1, 64), 8, 2)},
    ("attention", "plain d32"): {80: Tile((64, 64, 1), 4, 3), 90: Tile((64, 64, 1), 4, 3)},
    # queries, keys, features per step
    ("affinity", ""): {80: Tile((128, 128, 64), 8, 3), 90: Tile((128, 128, 64), 8, 3)},
    # queries, columns of one grid row of keys
    ("mix", "middle"): {80: Tile((64, 32), 4, 2), 90: Tile((64, 64), 8, 2)},
    ("mix", "other"): {80: Tile((64, 32), 4, 2), 90: Tile((64, 32), 4, 2)},
    # rows, memory rows, features per step
    ("nearest", ""): {80: Tile((128, 128, 64), 8, 3), 90: Tile((128, 128, 64), 8, 3)},
}


def architecture(device: torch.device) -> int:
    """The table column of a device: 80 or 90; 80 for the interpreter on the CPU."""
    if device.type != "cuda":
        return 80
    return 90 if torch.cuda.get_device_capability(device)[0] in (9, 10) else 80


def tile(kernel: str, variant: str, device: torch.device, width: int | None = None) -> Tile:
    """The table's entry for a launch on a device; a row of the head width's own goes before the variant's."""
    row = TILES.get((kernel, f"{variant} d{width}")) or TILES[kernel, variant]
    return row[architecture(device)]


def head_parts(width: int) -> tuple[int, int]:
    """A head width as one or two powers of two: 80 is 64 + 16, not padded to 128."""
    first = 1 << (width.bit_length() - 1)
    return first, width - first


def padded(tensor: torch.Tensor, step: int) -> torch.Tensor:
    """The tensor with its last axis filled up with zeros to a multiple of `step`, to be loaded as `dense` gives it."""
    ragged = -tensor.shape[-1] % step
    return torch.nn.functional.pad(tensor, (0, ragged)) if ragged else dense(tensor)


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself if all its rows start on 16 bytes and lie dense, else a contiguous copy.

    Told nothing about alignment the compiler loads entry by entry, and most kernels outgrow the registers.
    """
    *strides, last = tensor.stride()
    fits = last == 1 and all(stride % ENTRIES == 0 for stride in strides) and tensor.data_ptr() % ALIGNMENT == 0
    return tensor if fits else tensor.clone(memory_format=torch.contiguous_format)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself if it is contiguous from an address that is a multiple of 16, else a contiguous copy."""
    fits = tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0
    return tensor if fits else tensor.clone(memory_format=torch.contiguous_format)
