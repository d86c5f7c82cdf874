"""Kernels run here in Triton's interpreter (TRITON_INTERPRET=1), or on a CUDA device where there is one.

In a plain CPU run nothing of this folder is collected; `test_interpreter.py` starts a process that does. Triton reads
the switch when a kernel is decorated, so one process cannot both interpret and compile.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from densevl.kernels import decode

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNS = importlib.util.find_spec("triton") is not None and (INTERPRETED or torch.cuda.is_available())
collect_ignore_glob = [] if RUNS else ["test_*.py"]

if INTERPRETED and RUNS:
    from fused import checked_interpreter

    checked_interpreter.install()


@pytest.fixture(autouse=True, scope="session")
def any_plan() -> None:
    """Plans that touch more tokens than a launch is compiled for: in the interpreter they run too."""
    if INTERPRETED:
        decode.MOST_TAPS = 2**20


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")
