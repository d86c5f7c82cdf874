"""Locate files inside this package or another one, and check that they are the expected ones."""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from densevl import digest
from densevl.errors import ModelError, WeightsError
from densevl.files import shown

MINI, MINI_SAM = "weights/mini.safetensors", "weights/mini_sam.safetensors"


def is_shipped(weights: str) -> bool:
    """Return whether this installation contains the file densevl/`weights`."""
    return files("densevl").joinpath(weights).is_file()


def shipped_file(weights: str, sha256: str, model: str, tool: str) -> Path:
    """Return the path of densevl/`weights`, after checking its SHA-256.

    Args:
        weights: path below the package's folder, such as "weights/mini.safetensors". sha256: 64 hexadecimal digits.
        model, tool: the model's name and the module that makes the file, for messages.

    Raises:
        ModelError: If this installation does not contain the file.
        WeightsError: If the file has another checksum.
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


def installed_file(module: str, relative: str) -> Path | None:
    """Return the path of a file of an installed package without importing the package; None if there is no such file.

    Searching for a top-level module executes no code of the package, so it works for broken packages too.

    Args:
        module: a top-level name. relative: path of the file below the module's folder, with "/".
    """
    try:
        spec = PathFinder.find_spec(module) or find_spec(module)  # the first looks past sys.modules
    except (ImportError, ValueError):  # raised for a package that was only partly removed
        return None
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return next((path for folder in folders if (path := Path(folder, relative)).is_file()), None)


def open_clip_file(relative: str) -> Path:
    """Return a file of open_clip without importing it, which takes longer than importing torch.

    Raises:
        ModelError: If the file is missing.
    """
    path = installed_file("open_clip", relative)
    if path is None:
        if installed_file("open_clip", "__init__.py") is None:
            raise ModelError("open_clip is not installed: pip install open_clip_torch")
        raise ModelError(f"open_clip's {relative} is missing: pip install --force-reinstall open_clip_torch")
    return path
