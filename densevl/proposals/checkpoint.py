"""Reading the tensors of a weights file, whatever wrote it; nothing but plain content is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from densevl.errors import WeightsError
from densevl.shipped import read_tensors


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of a .safetensors file or a torch checkpoint by name, and the strings of its header, if it has one.

    Raises:
        WeightsError: missing, damaged, holding more than plain content, or no dict.
    """
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist; name a .safetensors, .pt or .pth file")
    if path.suffix.lower() == ".safetensors":
        state, header = read_tensors(path)
        return dict(state), header
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise many types on damaged files
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"weights file {path} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"weights file {path} holds a {type(content).__name__}, no dict of tensors")
    return content, {}
