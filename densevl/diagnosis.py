"""The checks of `densevl doctor`: versions, known problems of the environment, and the available models."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from densevl import __version__, devices
from densevl.cache import cache_dir
from densevl.drawing.text import undrawn_scripts
from densevl.errors import ModelError

CORE = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "pillow", "safetensors", "huggingface-hub")
FOR_WORK = ("detectors", "textile", "render", "browser", "dev")
"""Extras needed only for work on densevl itself."""
PRECISIONS = ("float32", "int8", "bfloat16")


@dataclass(frozen=True)
class Finding:
    """One row: what was checked, a verdict ("ok", "note" or "bad"), and what was found."""

    what: str
    verdict: str
    found: str


def diagnose(*, speed: bool = False) -> list[Finding]:
    """Run all checks. It takes a few seconds and does not use the network.

    Args:
        speed: also time the precisions, which takes a minute or two.
    """
    return [
        Finding("densevl", "ok", f"{__version__} on Python {platform.python_version()}, {platform.machine()}"),
        *_packages(),
        *_extras(),
        *_opencv(),
        _torch(),
        *_precisions(anew=speed),
        *([_speed()] if speed else []),
        _int8(),
        _fonts(),
        _cache(),
        *_models(),
    ]


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    for package in CORE:
        found = _installed(package)
        yield Finding(package, "ok" if found else "bad", found or "not installed; reinstall densevl")


def _extras() -> Iterator[Finding]:
    """List what is missing from each extra, with the command that installs it."""
    wanted: dict[str, list[str]] = {}
    try:
        declared = requires("densevl") or []
    except PackageNotFoundError:  # run from a folder, not installed
        return
    for text in declared:
        package, extra = re.match(r"[\w.-]+", text), re.search(r"extra == ['\"]([\w.-]+)", text)
        if package and extra and extra[1] not in ("all", *FOR_WORK):
            wanted.setdefault(extra[1], []).append(package[0])
    missing = {name: [one for one in own if not _installed(one)] for name, own in wanted.items()}
    for name, absent in missing.items():
        if absent:
            yield Finding(f"extra {name}", "ok", f'{", ".join(absent)} not installed: pip install "densevl[{name}]"')
    if complete := [name for name, absent in missing.items() if not absent]:
        yield Finding("extras", "ok", f"installed: {', '.join(complete)}")


def _precisions(*, anew: bool = False) -> Iterator[Finding]:
    """Report what `--precision auto` chooses on this machine, and why."""
    import torch

    from densevl.backbones.lowered.probe import fastest, machine

    device = torch.device(devices.default())
    choice = fastest(device, anew=anew)
    yield Finding("processor", "ok", machine(device))
    yield Finding("precision", "ok", f"--precision auto takes {choice.precision}: {choice.told}")


def _speed() -> Finding:
    """Time one window in each precision, on a ViT-B/16 with random weights (the weights do not affect the time)."""
    from densevl.benchmarking.cases import Case, measure
    from densevl.benchmarking.random_model import random_model

    model = random_model("ViT-B-16")
    cases = {name: Case(plan="whole", precision=name, height=224, width=224) for name in PRECISIONS}
    seconds = {name: measure(model, case, rounds=2)["seconds"] for name, case in cases.items()}
    times = ", ".join(f"{name} {taken:.3f} s" for name, taken in seconds.items())
    best = min(seconds, key=lambda name: seconds[name])
    gain = seconds["float32"] / seconds[best]
    advice = f"; --precision {best} is {gain:.1f} times as fast" if gain > 1.05 else "; float32 is best"
    return Finding("speed", "ok", f"a ViT-B/16 at 224x224: {times}{advice}")


def _int8() -> Finding:
    """Report how `--precision int8` computes attention and the operations between its products."""
    from densevl.kernels.compiled.compiling import told

    return Finding("int8", "ok", told())


def _opencv() -> Iterator[Finding]:
    found = {name: _installed(name) for name in ("opencv-python", "opencv-python-headless")}
    if all(found.values()):
        yield Finding(
            "opencv",
            "note",
            "opencv-python and opencv-python-headless overwrite each other: pip uninstall one, reinstall the other",
        )


def _torch() -> Finding:
    import torch

    if devices.default() == "cuda":
        return Finding("compute", "ok", torch.cuda.get_device_name())
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    base = f"no CUDA device, runs on the CPU with {threads} thread{'s' * (threads > 1)}"
    if torch.version.cuda and _nvidia():
        return Finding("compute", "note", f"{base}; slow: there is a GPU, but its driver is too old for this torch")
    if threads < cores // 2:  # of two hardware threads on a core, one is enough
        return Finding("compute", "note", f"{base} of {cores} cores; slow: unset OMP_NUM_THREADS")
    if (quota := _quota()) and threads > 1.5 * quota:
        few = max(1, round(quota))
        return Finding("compute", "note", f"{base}, the container allows {quota:g} cores; slow: OMP_NUM_THREADS={few}")
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT" and platform.machine() in ("x86_64", "AMD64"):
        return Finding("compute", "note", f"{base}, which has no AVX2; slow: take another machine")
    return Finding("compute", "ok", base)


def _nvidia() -> bool:
    return os.path.exists("/proc/driver/nvidia/version")


def _quota() -> float | None:
    """Return how many cores the container may use at once, or None without a limit."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            allowed, period = file.read().split()
        return int(allowed) / int(period)
    except (OSError, ValueError):  # "max", or no such file
        return None


def _fonts() -> Finding:
    """Check that class names of any script can be drawn."""
    if missing := undrawn_scripts():
        found = f"none for names in {', '.join(missing)}; pictures show numbers for them: install Noto fonts"
        return Finding("fonts", "ok", found)
    return Finding("fonts", "ok", "for all usual scripts")


def _cache() -> Finding:
    try:
        folder = cache_dir()
    except OSError as error:
        return Finding("cache", "note", f"no cache folder ({error}); set DENSEVL_CACHE")
    writable = os.access(folder, os.W_OK)
    return Finding(
        "cache", "ok" if writable else "note", f"{folder}{'' if writable else ' is read-only; set DENSEVL_CACHE'}"
    )


def _models() -> Iterator[Finding]:
    from densevl.backbones.at_hand import available, best_at_hand

    try:
        best = best_at_hand()
    except ModelError as error:
        yield Finding("models", "bad", str(error))
        return
    ready = ", ".join(info.name for info in available() if info.ready)
    yield Finding("models", "ok", f"at hand: {ready}; auto takes {best}")
