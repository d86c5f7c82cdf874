"""Text vectors that were computed elsewhere: a file with a vector for each text."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from densevl.errors import WeightsError
from densevl.saved import Kind, read_arrays
from densevl.weights.reading import State, read_checkpoint

NAME = "words.safetensors"
"""The file name in a model's folder."""
ARRAYS = Kind("text vectors", WeightsError, "write them with numpy.savez(FILE, **{text: vector, ...})")


def read_words(path: str | os.PathLike[str]) -> State:
    """Read text vectors from .npz as `numpy.savez` writes it, or safetensors; each name is a text with (D,) numbers.

    Raises:
        WeightsError: the file is of another kind, or its arrays are not numeric.
    """
    if Path(path).suffix.lower() != ".npz":
        return read_checkpoint(path).tensors
    found = read_arrays(path, ARRAYS)
    if odd := next((text for text, row in found.items() if row.dtype.kind not in "fiu"), None):
        raise ARRAYS.bad(path, f"holds {found[odd].dtype} for {odd[:40]!r}")
    return {text: torch.from_numpy(row.astype("float32")) for text, row in found.items()}
