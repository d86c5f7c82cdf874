"""What goes wrong with benchmarks: one line each that names the file, the limit and the way out."""

from __future__ import annotations

from densevl.errors import DensevlError


class DatasetError(DensevlError):
    """A dataset is missing, incomplete, or holds labels that its rules do not know."""


class EvaluationError(DensevlError):
    """An evaluation is set up in a way that contradicts itself, or its saved state belongs to another one."""
