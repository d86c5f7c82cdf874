"""Which steps run: those in C, compiled on first use and kept in the cache folder, or those in torch.

Nothing here fails a run. Where there is no C compiler, or what it makes does not agree with torch, torch's steps run,
and `densevl doctor` says why. `DENSEVL_COMPILE=0` asks for them; `CC` names the compiler. A compiler that failed is not
asked again for a day, but by `densevl doctor`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import nn

from densevl import digest
from densevl.cache import cache_dir
from densevl.errors import DensevlError, OutputError
from densevl.files import atomic_write, shown
from densevl.kernels.compiled.steps import IN_FLOAT32, KINDS, Compiled, Steps, Torch

SOURCE = Path(__file__).with_name("steps.c")
FLAGS = ("-O3", "-std=gnu11", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-fPIC")
SECONDS = 10
"""A compiler may take; half a second is usual."""
DAY = 24 * 3600
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
    """Which steps run here and why, for `densevl doctor`: a compiler that failed before is asked again."""
    return _found(anew=True)[1]


@cache
def _found(*, anew: bool = False) -> tuple[Steps, str]:
    if os.environ.get("DENSEVL_COMPILE") == "0":
        return Torch(), "steps between products in torch, as DENSEVL_COMPILE is 0"
    named = os.environ.get("CC") or "cc"
    try:
        command = shlex.split(named)
        if not command:
            raise ValueError("no command")
        compiler = shutil.which(command[0])
        if compiler is None:
            missing = f"without a C compiler {shown(command[0])}: install gcc or clang"
            return Torch(), f"steps between products in torch, {missing}"
        made = Compiled(_load([compiler, *command[1:]], anew))
        if not (_agrees(made) and _multiplies(made)):
            return Torch(), f"steps between products in torch, as what {compiler} compiles computes otherwise"
    except (OSError, ValueError, AttributeError, RuntimeError, DensevlError) as error:
        why = " ".join(str(error).split())[:200]
        return Torch(), f"steps between products in torch, as the C compiler {shown(named)} failed: {why}"
    unkept = "" if _own_folder() else ", anew in every process, as others can write to the cache folder, or nobody can"
    return made, f"steps between products compiled by {compiler}{unkept}"


def _load(command: list[str], anew: bool) -> ctypes.CDLL:
    """The library, from the cache folder or compiled.

    Raises:
        ChildProcessError: the compiler failed, now or within the last `DAY`.
    """
    flags = [*FLAGS, *(["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else [])]
    about = os.stat(command[0])
    compiler = f"{about.st_size} {about.st_mtime_ns}"
    key = f"steps-{digest.of_text(SOURCE.read_text('utf-8'), *flags, *command, compiler, _cpu())[:32]}"
    folder = _own_folder()
    for kept in () if folder is None else folder.glob(f"{key}-*.so"):
        if _is_own(kept) and kept.stem == f"{key}-{digest.of_file(kept)[:32]}":
            return ctypes.CDLL(str(kept))  # one that is damaged might kill this process
    failed = None if folder is None else folder / f"{key}.txt"
    if failed and not anew and _is_own(failed) and 0 <= time.time() - failed.stat().st_mtime < DAY:
        raise ChildProcessError(failed.read_text("utf-8", errors="replace"))
    with tempfile.TemporaryDirectory(prefix="densevl-") as private:
        made = Path(private) / "steps.so"
        try:
            _compile([*command, *flags, "-shared", str(SOURCE), "-o", str(made), "-lm"])
        except ChildProcessError as error:
            if failed:
                with contextlib.suppress(OutputError, OSError):
                    atomic_write(failed, f"{error}".encode()).chmod(0o600)
            raise
        library = made.read_bytes()
        if folder:
            with contextlib.suppress(OutputError, OSError):  # a full disk, or one that is not to be written to
                made = atomic_write(folder / f"{key}-{digest.of_bytes(library)[:32]}.so", library)
                made.chmod(0o700)
        return ctypes.CDLL(str(made))


def _compile(command: list[str]) -> None:
    """Run the compiler.

    Raises:
        ChildProcessError: with the reason, on one line.
    """
    try:
        ran = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, errors="replace", timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ChildProcessError(f"it took more than {SECONDS} s") from error
    if ran.returncode:
        said = ran.stderr.strip().splitlines()[-1:]
        raise ChildProcessError(": ".join([f"exit status {ran.returncode}", *said]))


def _own_folder() -> Path | None:
    """Where libraries are kept; None where others could put one, for it will be executed, or nobody can."""
    try:
        folder = cache_dir().resolve() / "compiled"
        folder.mkdir(mode=0o700, exist_ok=True)
        others = [above.stat().st_mode for above in folder.parents]
    except OSError:
        return None
    exposed = any(mode & stat.S_IWOTH and not mode & stat.S_ISVTX for mode in others)
    return folder if _is_own(folder) and not exposed else None


def _is_own(path: Path) -> bool:
    """Whether it is there, no link, of this user or root, and writable by nobody else."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return False
    return not stat.S_ISLNK(about.st_mode) and about.st_uid in (0, os.getuid()) and not about.st_mode & 0o022


def _cpu() -> str:
    """The instructions of this CPU."""
    try:
        found = re.search(r"^(flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
    except OSError:
        found = None
    return found[0] if found else platform.processor()


def _agrees(made: Steps) -> bool:
    """Whether all steps give what torch's give, but for one step of rounding."""
    rows, width = 5, 100
    x = torch.linspace(-3, 3, rows * width).reshape(rows, width).sin() * 4
    step, bias, norm = torch.linspace(0.5, 1.5, rows)[:, None], torch.linspace(-1, 1, width), nn.LayerNorm(width)
    heads = torch.linspace(-9, 9, 3 * 2 * 50 * 64).cos().reshape(1, 50, 3, 2, 64).permute(2, 0, 3, 1, 4)
    calls = [
        lambda s: s.lower(x, 127),
        lambda s: s.norm_lower(x, norm, 127),
        *(lambda s, kind=kind: s.activate_lower(x.clone(), step, bias, kind, 255) for kind in KINDS),
        *(lambda s, kind=kind: (s.activate(x.clone(), bias, kind) * 1e4, x) for kind in IN_FLOAT32),
        lambda s: (s.scale(x.clone(), step, bias) * 16, s.scale(x.clone(), step, bias, x)),
        lambda s: (s.attend(*heads) * 1e4, s.attend(*heads).norm(dim=-1)),
        lambda s: (s.attend(heads[0][:, :, :9], *heads[1:], 0.3) * 1e4, x),
    ]
    with torch.no_grad():
        return all(
            bool((a.float() - b.float()).abs().max() <= 1 and torch.allclose(s, t, rtol=1e-5))
            for (a, s), (b, t) in ((call(made), call(Torch())) for call in calls)
        )


@torch.no_grad()
def _multiplies(made: Compiled) -> bool:
    """Whether its product is that of torch."""
    x, weight = torch.linspace(-3, 3, 700).sin().reshape(7, 100), torch.linspace(-9, 9, 13000).cos().reshape(130, 100)
    bias, add = torch.linspace(-1, 1, 130), torch.linspace(1, 2, 7 * 130).reshape(7, 130)
    wanted = Torch().activate(nn.functional.linear(x, weight, bias), None, "gelu") + add
    return torch.allclose(made.product(x, made.lay_out(weight), bias, "gelu", add), wanted, rtol=1e-5, atol=1e-4)
