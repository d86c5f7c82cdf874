"""Weights files of proxies: reading them safely, finding the tensors in them, and loading them strictly.

Understood: timm's naming, DINO's own (which is the same), DINO's training checkpoints (the teacher's backbone is
taken), and what timm converts itself, such as DINOv2's and DINOv3's own naming.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densevl.backbones.weights import explain_mismatch, looks_wrong
from densevl.errors import WeightsError
from densevl.shipped import read_tensors

State = dict[str, torch.Tensor]

CONTAINERS = ("teacher", "state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "backbone.")
PATCHES = "patch_embed.proj.weight"


def read_state(path: Path) -> State:
    """The tensors of a .safetensors file or of a torch checkpoint by name, without containers, wrappers and heads.

    Raises:
        WeightsError: missing, damaged, or holding more than tensors.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"weights file {path} {found}; name a .safetensors, .pt or .pth file")
    wrong = looks_wrong(path)
    if wrong:
        raise WeightsError(f"weights file {path} {wrong}")
    content: Mapping[str, Any] = (
        read_tensors(path)[0] if path.suffix.lower() == ".safetensors" else _read_checkpoint(path)
    )
    for container in CONTAINERS:
        inner = content.get(container)
        content = inner if isinstance(inner, Mapping) else content
    state = {_bare(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    return {key: value for key, value in state.items() if not key.startswith("head.")}


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights file {path} holds more than plain tensors and is refused: convert it to safetensors"
        ) from error
    except (EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise WeightsError(f"weights file {path} is damaged: {reason}") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"weights file {path} holds a {type(content).__name__}, not tensors by name")
    return content


def _bare(key: str) -> str:
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def load_timm(model: nn.Module, state: State, path: Path, name: str) -> None:
    """Load into a timm model strictly; another naming goes through the converter that timm has for the architecture.

    Raises:
        WeightsError: the tensors belong to another architecture or patch size.
    """
    wanted = model.state_dict()
    if set(state) != set(wanted):
        # the converter resizes patch kernels that do not fit, which would hide a model of another patch size
        kernel, own = state.get(PATCHES), wanted.get(PATCHES)
        if kernel is not None and own is not None and kernel.ndim == 4 and kernel.shape != own.shape:
            raise WeightsError(
                f"weights file {path} does not fit '{name}': {PATCHES} is {tuple(kernel.shape)}, not "
                f"{tuple(own.shape)}; name the architecture it was trained with"
            )
        convert = getattr(import_module(type(model).__module__), "checkpoint_filter_fn", None)
        if convert is not None:
            try:
                state = convert(dict(state), model)
            except (KeyError, RuntimeError, ValueError, AttributeError, TypeError) as error:
                raise WeightsError(f"weights file {path} does not fit '{name}': {error}") from error
    load_strictly(model, state, path, name)


def load_strictly(model: nn.Module, state: State, path: Path, name: str) -> None:
    """`load_state_dict` in float32 whose complaint is one line.

    Raises:
        WeightsError: keys or shapes differ; up to three are listed.
    """
    try:
        model.load_state_dict({key: value.float() for key, value in state.items()}, strict=True)
    except RuntimeError as error:
        raise WeightsError(explain_mismatch(error, path, name)) from error
