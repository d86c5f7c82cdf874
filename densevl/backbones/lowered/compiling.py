"""Which steps run: those in C, compiled on first use and kept in the cache folder, or those in torch.

Nothing here fails a run. Where there is no C compiler, or what it makes does not agree with torch, torch's steps run,
and `densevl doctor` says why. `DENSEVL_COMPILE=0` asks for them; `CC` names the compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import nn

from densevl import digest
from densevl.backbones.lowered.steps import KINDS, Compiled, Steps, Torch
from densevl.cache import cache_dir
from densevl.errors import DensevlError
from densevl.files import atomic_write

SOURCE = Path(__file__).with_name("steps.c")
FLAGS = ("-O3", "-std=gnu11", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-fPIC")
SECONDS = 60
_forced: list[Steps] = []


def steps() -> Steps:
    """The steps in force."""
    return _forced[-1] if _forced else _found()[0]


@contextlib.contextmanager
def use(chosen: Steps) -> Iterator[None]:
    """Run these steps within, whatever was found."""
    _forced.append(chosen)
    try:
        yield
    finally:
        _forced.pop()


def told() -> str:
    """Which steps run here and why, for `densevl doctor`."""
    return _found()[1]


@cache
def _found() -> tuple[Steps, str]:
    if os.environ.get("DENSEVL_COMPILE") == "0":
        return Torch(), "steps between products in torch, as DENSEVL_COMPILE is 0"
    command = shlex.split(os.environ.get("CC") or "cc")
    compiler = shutil.which(command[0])
    if compiler is None:
        return (
            Torch(),
            f"steps between products in torch, without a C compiler '{command[0]}': install gcc or clang",
        )
    try:
        made = Compiled(_load([compiler, *command[1:]]))
        if not _agrees(made):
            return Torch(), f"steps between products in torch, as what {compiler} compiles computes otherwise"
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError, DensevlError) as error:
        why = " ".join(str(getattr(error, "stderr", None) or error).split())[:200]
        return Torch(), f"steps between products in torch, as {compiler} failed: {why}"
    return made, f"steps between products compiled by {compiler}"


def _load(command: list[str]) -> ctypes.CDLL:
    """The library, from the cache folder or compiled."""
    flags = [*FLAGS, *(["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else [])]
    about = os.stat(command[0])
    compiler = f"{about.st_size} {about.st_mtime_ns}"
    key = digest.of_text(SOURCE.read_text("utf-8"), *flags, *command, compiler, _cpu())
    try:
        kept = cache_dir() / "compiled" / f"steps-{key[:32]}.so"
        if _is_own(kept):
            return ctypes.CDLL(str(kept))
    except OSError:
        kept = None
    with tempfile.TemporaryDirectory(prefix="densevl-") as folder:
        made = Path(folder) / "steps.so"
        subprocess.run(  # noqa: S603
            [*command, *flags, "-shared", str(SOURCE), "-o", str(made), "-lm"],
            capture_output=True,
            text=True,
            check=True,
            timeout=SECONDS,
        )
        if kept is not None:
            with contextlib.suppress(DensevlError, OSError):  # a folder that cannot be written to
                atomic_write(kept, made.read_bytes()).chmod(0o700)
        return ctypes.CDLL(str(made))


def _is_own(path: Path) -> bool:
    """Whether the file is there, of this user, and writable by nobody else: it will be executed."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return False
    return about.st_uid == os.getuid() and not about.st_mode & 0o022


def _cpu() -> str:
    """The instructions of this CPU."""
    try:
        found = re.search(r"^(flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[0] if found else platform.processor()


def _agrees(made: Steps) -> bool:
    """Whether all steps give what torch's give, but for one step of rounding."""
    rows, width = 5, 100
    x = torch.linspace(-3, 3, rows * width).reshape(rows, width).sin() * 4
    step, bias, norm = torch.linspace(0.5, 1.5, rows)[:, None], torch.linspace(-1, 1, width), nn.LayerNorm(width)
    calls = [
        lambda s: s.lower(x, 127),
        lambda s: s.norm_lower(x, norm, 127),
        *(lambda s, kind=kind: s.activate_lower(x.clone(), step, bias, kind, 255) for kind in KINDS),
        lambda s: (s.scale(x.clone(), step, bias) * 16, s.scale(x.clone(), step, bias, x)),
    ]
    with torch.no_grad():
        return all(
            bool((a.float() - b.float()).abs().max() <= 1 and torch.allclose(s, t, rtol=1e-5))
            for (a, s), (b, t) in ((call(made), call(Torch())) for call in calls)
        )
