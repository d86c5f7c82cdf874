"""Where a model runs: on the device asked for, else on CUDA where there is one, else on the CPU."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from densevl.errors import OptionError

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 2**30  # bytes of a block, and of what is free at the end of the heap


def default(rank: int | None = None) -> str:
    """CUDA where there is one, else the CPU.

    Args:
        rank: of a process among several on this machine, which share its CUDA devices in turn.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return "cuda" if rank is None else f"cuda:{rank % torch.cuda.device_count()}"


def choose(device: str | torch.device | None = None) -> str:
    """The device asked for, None takes the default, after a try whether it can be used.

    Raises:
        OptionError: it cannot.
    """
    import torch

    chosen = default() if device is None else str(device)
    try:
        if torch.empty(0, device=chosen).is_meta:
            raise TypeError("it holds no values")
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises an assertion where CUDA is not built in
        reason = str(error).strip().split("\n")[0]
        raise OptionError(f"device '{chosen}' cannot be used here ({reason}); take 'cpu'") from error
    return chosen


MATRIX_INSTRUCTIONS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimddp", "i8mm", "bf16"),
)
"""Flags of CPUs, x86's and then Arm's, that say how they multiply matrices."""


@cache
def processor() -> tuple[str, tuple[str, ...]]:
    """The name of this machine's CPU, and those of `MATRIX_INSTRUCTIONS` that it says it has (Linux)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    told: dict[str, str] = dict(re.findall(r"^(model name|flags|Features)\s*: (.*)$", text, re.MULTILINE))
    flags = (told.get("flags") or told.get("Features") or "").split()
    name: str = told.get("model name") or platform.processor() or platform.machine()
    return name.strip(), tuple(flag for flag in MATRIX_INSTRUCTIONS if flag in flags)


def free_memory(device: str = "cpu") -> int | None:
    """Bytes that can be had on a device without swapping; None where nothing says it.

    On a CPU that is what the system has left, and no more than what this process's control group (a container) has.
    """
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if torch.device(device).type != "cpu":
        return None
    bounds = [found for found in (_of_system(), _of_group()) if found is not None]
    return min(bounds, default=None)


def give_back() -> None:
    """Hand memory that was freed back to the system, of which glibc keeps what lies between smaller pieces."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def keep_memory() -> None:
    """Let this process keep memory that it frees, for what it allocates next: a program that runs models may call it.

    glibc hands large blocks back to the system, which has to fill their pages with zeros when they are asked for again:
    up to a quarter of the time of an int8 pass on a CPU. Commands of densevl call this, importing densevl does not. It
    lasts until the process ends, holds for all its threads, and changes nothing with another C library.
    """
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        for option, size in (M_MMAP_THRESHOLD, KEPT), (M_TRIM_THRESHOLD, KEPT):
            libc.mallopt(option, size)


def _of_system() -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None


def _of_group(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What is left of the limit of a control group of version 2, whose cached files give way."""
    try:
        limit, used = ((folder / f"memory.{name}").read_text(encoding="ascii").strip() for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(encoding="ascii"), re.MULTILINE)
        return int(limit) - int(used) + int(cached[1] if cached else 0)
    except (OSError, ValueError):  # no such group, or its limit is "max"
        return None
