"""What an attack may cost."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MEASURED = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from spending import peak
"""
"""How the code of a child process begins that asks for its `peak`."""


def peak() -> float:
    """The most memory that this process had since `forget_peak`, in MiB.

    That of getrusage is no less than that of the parent, which a child of `subprocess` inherits on Linux.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    """Count from what the process has now, where the system can do so."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


@contextmanager
def spending(*, seconds: float, megabytes: float) -> Iterator[None]:
    """Assert that what is within takes no more of this process: CPU time, and memory beyond what it had."""
    forget_peak()
    before, start = peak(), time.process_time()
    yield
    took, grown = time.process_time() - start, peak() - before
    assert took < seconds, f"it took {took:.2f} s"
    assert grown < megabytes, f"it took {grown:.0f} MB"
