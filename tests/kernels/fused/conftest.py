"""Kernels run here in Triton's interpreter (TRITON_INTERPRET=1), or on a CUDA device where there is one.

In a plain CPU run nothing of this folder is collected; `test_interpreter.py` starts a process that does. Triton reads
the switch when a kernel is decorated, so one process cannot both interpret and compile.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNS = importlib.util.find_spec("triton") is not None and (INTERPRETED or torch.cuda.is_available())
collect_ignore_glob = [] if RUNS else ["test_*.py"]

if INTERPRETED and RUNS:
    from fused import checked_interpreter

    checked_interpreter.install()


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")
