"""Starts the process in which Triton interprets the kernels; what runs there is in `fused/`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUSED = Path(__file__).parent / "fused"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", ["values", "mutants", "nodes"])
def test_kernels_hold_in_the_interpreter(what) -> None:
    pytest.importorskip("triton", reason="this torch comes without triton")
    file = FUSED / f"test_fused_{what}.py"  # alone: the conftest above loads open_clip, which takes seconds
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--confcutdir={FUSED}", str(file)],
        cwd=FUSED.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
