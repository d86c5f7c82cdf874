"""What `densevl doctor` looks at: versions, known traps of the environment, and the models at hand."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from densevl import __version__, devices
from densevl.cache import cache_dir
from densevl.errors import ModelError

CORE = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "pillow", "safetensors", "huggingface-hub")


@dataclass(frozen=True)
class Finding:
    """One row: what was looked at, a verdict ("ok", "note" or "bad"), and what was found."""

    what: str
    verdict: str
    found: str


def diagnose() -> list[Finding]:
    """Look at everything; takes a few seconds, touches no network."""
    return [
        Finding("densevl", "ok", f"{__version__} on Python {platform.python_version()}, {platform.machine()}"),
        *_packages(),
        *_opencv(),
        _torch(),
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

    device = torch.cuda.get_device_name() if devices.default() == "cuda" else "no CUDA device, runs on the CPU"
    return Finding("compute", "ok", f"{device}; {torch.get_num_threads()} threads")


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
    from densevl.backbones import available
    from densevl.backbones.load import best_at_hand

    try:
        best = best_at_hand()
    except ModelError as error:
        yield Finding("models", "bad", str(error))
        return
    ready = ", ".join(info.name for info in available() if info.ready)
    yield Finding("models", "ok", f"at hand: {ready}; auto takes {best}")
