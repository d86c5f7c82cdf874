"""The fastest precision on this machine, for `precision="auto"`.

On a CPU one linear layer is timed in each precision that is correct there, in under a tenth of a second; the answer is
kept in the cache folder. CPUs differ by more than the gain: bfloat16 takes 0.3 of float32's time with AMX, and 1.8
times as long with AVX-512 alone. On a GPU the compute capability decides.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from densevl import devices, digest
from densevl.backbones.precision import LINEARS, PRECISIONS, check
from densevl.cache import cache_dir
from densevl.errors import DensevlError, OutputError
from densevl.files import atomic_write, json_text
from densevl.kernels.compiled.compiling import use
from densevl.kernels.compiled.steps import Torch
from densevl.kernels.linear import linear

TOKENS, WIDTH = 394, 768  # two windows of a ViT-B/16
ROUNDS = 5
"""Calls of each layer, in turn; the shortest counts, because other work on the machine disturbs some of them."""
WORTH = 0.8
"""The fraction of float32's time that a precision must stay under to be chosen, since each costs some accuracy."""
CLEARLY = 1.5
"""How many times faster than int8 another precision must be to be chosen instead. With close times the choice would
change from process to process, and int8 with compiled steps is faster than timed here."""
HOPELESS = 2.0
"""A precision that takes this many times float32's time for a few tokens is timed for those only."""
SLOWER = 1.1
"""The fraction of float32's time above which a precision given by name causes a warning."""
ROUNDING = {"int8": 0.03, "bfloat16": 0.01, "float16": 0.002}
"""The precisions tried, and the largest relative error of a layer's output; a product that saturates is far above."""
SETTINGS = (
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"),
    *("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
)
"""Environment variables that decide which instructions are used, and how exact float32 is."""


@dataclass(frozen=True)
class Choice:
    """The choice of "auto" on a device.

    Attributes:
        precision: one of `PRECISIONS`.
        seconds: of one layer in each precision; empty on a GPU.
        refused: excluded precisions, each with the reason.
        is_kept: whether another process will get the same answer.
    """

    precision: str
    seconds: Mapping[str, float]
    refused: Mapping[str, str]
    is_kept: bool = True

    @property
    def told(self) -> str:
        """The result in one line."""
        sentences = [f"{name} {why}" for name, why in self.refused.items()]
        if not self.seconds:
            return "; ".join(sentences)
        base = self.seconds["float32"]
        layers = [
            f"{name} {1e3 * taken:.2f} ms" + (f" ({taken / base:.2f})" if name != "float32" else "")
            for name, taken in self.seconds.items()
        ]
        sentences += [] if self.is_kept else ["the answer cannot be kept in the cache folder"]
        return "; ".join([f"a linear layer takes {', '.join(layers)}", *sentences])


def fastest(device: torch.device, *, anew: bool = False) -> Choice:
    """The precision to use on a device, measured once, or `anew`, and then read from the cache folder."""
    if device.type == "cuda":
        return _by_capability(torch.cuda.get_device_capability(device))
    if device.type != "cpu":
        return Choice("float32", {}, {"others": f"are not tried on '{device.type}'"})
    name, instructions = devices.processor()
    machine = (
        *(name, " ".join(instructions), torch.__version__, str(torch.get_num_threads())),
        *(torch.get_float32_matmul_precision(), *(os.environ.get(setting, "") for setting in SETTINGS)),
    )
    if anew:
        _on_cpu.cache_clear()
        with suppress(OSError):
            _path(machine).unlink()
    return _on_cpu(*machine)


def machine(device: torch.device) -> str:
    """A device in a few words: for a CPU, its name and its matrix instructions."""
    if device.type != "cpu":
        return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    name, instructions = devices.processor()
    return f"{name}: {', '.join(instructions) or 'its instructions are not known'}"


def unkept(precision: str, device: torch.device) -> tuple[str, ...]:
    """A warning, if another process may choose another precision."""
    if fastest(device).is_kept:
        return ()
    return (
        f"precision auto took {precision}, which cannot be kept in the cache folder, so a later run may take another: "
        f"--precision {precision} settles it",
    )


def slower(precision: str, device: torch.device) -> tuple[str, ...]:
    """A warning, if a precision given by name is slower than float32 on this CPU."""
    if precision == "float32" or device.type != "cpu":
        return ()
    found = fastest(device)
    times = found.seconds.get(precision, 0) / found.seconds["float32"]
    if times <= SLOWER:
        return ()
    best = "float32 is fastest" if found.precision == "float32" else f"{found.precision} is faster"
    return (f"precision {precision} takes {times:.1f} times as long as float32 on this CPU; here {best}",)


def _by_capability(capability: tuple[int, int]) -> Choice:
    """Tensor cores support float16 from 7.0 on, and bfloat16, which has float32's range, from 8.0 on."""
    device = f"compute capability {capability[0]}.{capability[1]}"
    if capability >= (8, 0):
        return Choice("bfloat16", {}, {"others": f"are left to {device}"})
    return Choice("float16" if capability >= (7, 0) else "float32", {}, {"bfloat16": f"is not for {device}"})


@lru_cache(maxsize=8)
def _on_cpu(*machine: str) -> Choice:
    """The answer for this CPU, version of torch, number of threads and settings."""
    if (kept := _read(machine)) is not None:
        return kept
    found = probe()
    content = {"machine": machine, "seconds": found.seconds, "refused": found.refused}
    try:
        atomic_write(_path(machine), json_text(content, indent=1).encode())
    except (OSError, OutputError):  # no folder to write to
        return replace(found, is_kept=False)
    return found


def _path(machine: Sequence[str]) -> Path:
    return cache_dir() / f"precision-{digest.of_text(*machine)[:16]}.json"


def _read(machine: Sequence[str]) -> Choice | None:
    """The choice for times found before; None if there are none, or the file is damaged or another machine's."""
    try:
        held = json.loads(_path(machine).read_bytes())
        seconds = {str(name): float(taken) for name, taken in held["seconds"].items()}
        refused = {str(name): str(why) for name, why in held["refused"].items()}
        sound = held["machine"] == [*machine] and {"float32"} <= seconds.keys() <= set(PRECISIONS)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None
    return Choice(choose(seconds), seconds, refused) if sound and all(0 < x < 1e3 for x in seconds.values()) else None


@torch.inference_mode()
@use(Torch())
def probe() -> Choice:
    """Time one linear layer in each precision that is correct on this CPU, in turn, and keep each one's shortest time.

    int8 is timed with torch's steps, so that the probe compiles nothing; compiled steps are somewhat faster.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, WIDTH, generator=generator)
    weight, bias = torch.randn(WIDTH, WIDTH, generator=generator), torch.randn(WIDTH, generator=generator)
    refused = {name: why for name in ROUNDING if (why := _wrong(name)) is not None}
    layers: dict[str, Callable[[torch.Tensor], Any]] = {"float32": lambda given: linear(given, weight, bias)}
    layers |= {name: LINEARS[name](weight, bias) for name in ROUNDING if name not in refused}
    few = {name: min(_seconds(layer, x[: TOKENS // 16]) for _ in range(3)) for name, layer in layers.items()}
    hopeless = {name: taken / few["float32"] for name, taken in few.items() if taken > HOPELESS * few["float32"]}
    timed: dict[str, list[float]] = {name: [] for name in layers if name not in hopeless}
    for _ in range(ROUNDS):
        for name, taken in timed.items():
            taken.append(_seconds(layers[name], x))
    seconds = {name: min(taken) for name, taken in timed.items()}
    seconds |= {name: times * seconds["float32"] for name, times in hopeless.items()}
    return Choice(choose(seconds), seconds, refused)


def choose(seconds: Mapping[str, float]) -> str:
    """The precision to choose for the seconds of each: see `WORTH` and `CLEARLY`."""
    worth = {name: taken for name, taken in seconds.items() if taken < WORTH * seconds["float32"]}
    best = min(worth, key=lambda name: worth[name], default="float32")
    return "int8" if "int8" in worth and worth["int8"] <= CLEARLY * worth[best] else best


def _seconds(layer: Callable[[torch.Tensor], Any], x: torch.Tensor) -> float:
    started = time.perf_counter()
    layer(x)
    return time.perf_counter() - started


def _wrong(precision: str) -> str | None:
    """Why a precision is excluded on this CPU, or None; tested against float32 on noise, and on the largest bytes."""
    try:
        check(precision, torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(16, 64, generator=generator), torch.randn(32, 64, generator=generator)
        signs = torch.ones(32, 1)
        signs[1::2] = -1
        largest = torch.full((16, 64), 2.0), 0.5 * signs.expand(32, 64)
        for x, weight in (noise, largest):
            exact = F.linear(x, weight)
            error = (LINEARS[precision](weight, None)(x) - exact).norm() / exact.norm()
            if not error < ROUNDING[precision]:
                return f"multiplies wrongly here (off by {100 * error:.0f} %)"
    except (DensevlError, RuntimeError) as failure:
        return f"cannot run here: {str(failure).strip().splitlines()[0]}"
    return None
