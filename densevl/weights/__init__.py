"""Weights files: one reader for all of them, as data, and the strict comparison of tensors with a network.

This room lies below every room that loads a network (proposals, regions, backbones, fitted heads), so that a damaged
file is the same one line for all of them. The files that densevl ships lie here too.
"""

from densevl.weights.finite import require_finite
from densevl.weights.fitting import (
    WAY_OUT,
    Undrawn,
    assign,
    build_strictly,
    load_strictly,
    require_buildable,
    require_fit,
    require_sizes,
)
from densevl.weights.reading import SUFFIXES, Checkpoint, State, bad_file, below, read_checkpoint

__all__ = [
    "read_checkpoint",
    "Checkpoint",
    "State",
    "Undrawn",
    "below",
    "bad_file",
    "load_strictly",
    "assign",
    "require_fit",
    "build_strictly",
    "require_buildable",
    "require_sizes",
    "require_finite",
    "SUFFIXES",
    "WAY_OUT",
]
