"""What an attack may cost."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def spending(*, seconds: float, megabytes: float) -> Iterator[None]:
    """Assert that what is within takes no more of this process: CPU time, and memory beyond what it ever had."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    took = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert took < seconds, f"it took {took:.2f} s"
    assert grown < megabytes, f"it took {grown:.0f} MB"
