"""Choose the device a model runs on, and manage its memory."""

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

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
KEPT = 2**30  # bytes: the largest block malloc keeps, and the free memory it keeps at the end of the heap


def default(rank: int | None = None) -> str:
    """Return "cuda" if CUDA is available, else "cpu".

    Args:
        rank: rank of this process among several on this machine. They share its CUDA devices in turn.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return "cuda" if rank is None else f"cuda:{rank % torch.cuda.device_count()}"


def choose(device: str | torch.device | None = None) -> str:
    """Return the device asked for, or the default for None, after checking that it works.

    Raises:
        OptionError: If the device cannot be used.
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
"""CPU flags, x86 first and then Arm, that tell how fast a CPU multiplies matrices."""


@cache
def processor() -> tuple[str, tuple[str, ...]]:
    """Return the name of this machine's CPU and which of `MATRIX_INSTRUCTIONS` it reports (Linux only)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    fields: dict[str, str] = dict(re.findall(r"^(model name|flags|Features)\s*: (.*)$", text, re.MULTILINE))
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    name: str = fields.get("model name") or platform.processor() or platform.machine()
    return name.strip(), tuple(flag for flag in MATRIX_INSTRUCTIONS if flag in flags)


def free_memory(device: str = "cpu") -> int | None:
    """Return the bytes that can be allocated on a device without swapping, or None if that is unknown.

    On a CPU this is the smaller of what the system has left and what this process's control group (container) has left.
    """
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if torch.device(device).type != "cpu":
        return None
    bounds = [found for found in (_of_system(), _of_group()) if found is not None]
    return min(bounds, default=None)


def give_back() -> None:
    """Return freed memory to the system. glibc otherwise keeps blocks that lie between smaller ones."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def keep_memory() -> None:
    """Let this process keep the memory it frees for later allocations. Programs that run models may call it.

    By default glibc returns large blocks to the system, which must zero their pages when they are allocated again. That
    takes up to a quarter of the time of an int8 pass on a CPU. The densevl commands call this function, but importing
    densevl does not. The setting lasts until the process ends and covers all its threads. It has no effect with another
    C library.
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
    """Return what is left of the memory limit of a version 2 control group. Its cached files count as free."""
    try:
        limit, used = ((folder / f"memory.{name}").read_text(encoding="ascii").strip() for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(encoding="ascii"), re.MULTILINE)
        return int(limit) - int(used) + int(cached[1] if cached else 0)
    except (OSError, ValueError):  # no such group, or its limit is "max"
        return None
