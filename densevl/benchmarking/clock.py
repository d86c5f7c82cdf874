"""Time and memory of a call, measured so that a busy machine disturbs little.

On a CPU, time is CPU seconds of the process. Several calls are timed in turn, and the median of each is kept; trust the
ratio of two calls in one run. On a GPU, time is seconds between synchronisations.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

from densevl.errors import DensevlError

Call = Callable[[], Any]
STATUS = Path("/proc/self/status")
KIB = 1024.0


def seconds(call: Call, device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        return time.perf_counter() - started
    started = time.process_time()
    call()
    return time.process_time() - started


@dataclass(frozen=True)
class Cost:
    """The cost of a call.

    Attributes: seconds, the median; least, the fastest; faults, the median number of memory pages that the system had
        to fill, or None where it does not count them.
    """

    seconds: float
    least: float
    faults: float | None


def costs(calls: Mapping[str, Call], rounds: int, device: torch.device) -> dict[str, Cost]:
    """Cost of each call over rounds in which all are made in turn, after one round that is not counted."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    faults: dict[str, list[int]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            before = minor_faults()
            times[name].append(seconds(call, device))
            if before is not None:
                faults[name].append((minor_faults() or 0) - before)
    return {
        name: Cost(statistics.median(own), min(own), statistics.median(faults[name]) if faults[name] else None)
        for name, own in times.items()
    }


def minor_faults() -> int | None:
    """Memory pages that this process has been given so far; None where they are not counted."""
    return None if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def medians(calls: Mapping[str, Call], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each call; see `costs`."""
    return {name: cost.seconds for name, cost in costs(calls, rounds, device).items()}


def peak_mib(call: Call, device: torch.device) -> float | None:
    """Memory that a call needs beyond what is held before it, in MiB; None where it cannot be measured.

    On a CPU it is the peak resident size of the process (Linux). Memory that an earlier call freed is first returned to
    the system, because it would hide some.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - held) / KIB**2
    try:
        reset_peak()
    except (OSError, AttributeError):  # not Linux, or not glibc
        call()
        return None
    before = resident_mib("VmRSS")
    call()
    return resident_mib("VmHWM") - before


def reset_peak() -> None:
    """Return freed memory to the system and restart the peak of this process (Linux, glibc).

    Raises:
        OSError, AttributeError: the system is another.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def resident_mib(which: str = "VmRSS") -> float:
    """Memory of this process in MiB (Linux): resident now ("VmRSS"), or its peak since `reset_peak` ("VmHWM")."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{which}:"):
            return float(line.split()[1]) / KIB
    raise DensevlError(f"{STATUS} has no {which}")
