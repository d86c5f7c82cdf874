"""Weights that lie inside the package: where they are, and that they are the ones the code was written for."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from densevl import digest
from densevl.errors import ModelError, WeightsError
from densevl.files import shown


def is_shipped(weights: str) -> bool:
    """Whether this installation holds the file densevl/`weights`."""
    return files("densevl").joinpath(weights).is_file()


def shipped_file(weights: str, sha256: str, model: str, tool: str) -> Path:
    """The path of densevl/`weights`, checked against its SHA-256.

    Args:
        weights: below the package's folder, such as "weights/mini.safetensors"; sha256: 64 hexadecimal digits.
        model, tool: the model's name and the module that makes the file, for messages.

    Raises:
        ModelError: this installation holds no such file. WeightsError: the file is another one.
    """
    path = Path(str(files("densevl").joinpath(weights)))
    if not path.is_file():
        raise ModelError(
            f"model '{model}' has no weights in this installation (densevl/{weights}): install densevl from a wheel, "
            f"or train them with python -m {tool}"
        )
    found = digest.of_file(path)
    if found != sha256:
        raise WeightsError(f"weights file {shown(path)} is not the one densevl ships: its SHA-256 is {found[:12]}...")
    return path
