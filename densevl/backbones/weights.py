"""Loading a weights file into an open_clip model, safely, with causes named.

Only safetensors and `torch.load(weights_only=True)` are used; nothing unpickles arbitrary objects.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from torch import nn

from densevl.errors import WeightsError

SHOWN_KEYS = 3
POINTER = b"version https://git-lfs"


def _looks_wrong(path: Path) -> str | None:
    """Why this file cannot be weights, judged by its first bytes, or None."""
    size = path.stat().st_size
    if size == 0:
        return "is empty"
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(POINTER):
        return "is a Git LFS pointer, not the file it points to: run 'git lfs pull'"
    if head.lstrip()[:1] == b"<":
        return "is a web page: download the file itself, not the page that shows it"
    if path.suffix == ".safetensors":
        header = int.from_bytes(head[:8], "little")
        if len(head) < 9 or head[8:9] != b"{" or header > 100_000_000:
            return "is not a safetensors file: its header is malformed"
        if 8 + header > size:
            return "is cut off: its header is incomplete"
    elif head[:2] != b"PK" and head[:2] != b"\x80\x02":
        return "is neither safetensors nor a torch checkpoint"
    return None


def load_weights(model: nn.Module, path: Path, name: str) -> None:
    """Load a checkpoint strictly into an open_clip model.

    Args:
        model: built by open_clip with the architecture the file should fit.
        path: .safetensors, or a torch checkpoint (.pt, .pth, .bin) of plain tensors.
        name: the model's name, for messages.

    Raises:
        WeightsError: missing, damaged or of another architecture; up to three keys are listed.
    """
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist; name a .safetensors, .pt or .bin file")
    wrong = _looks_wrong(path)
    if wrong:
        raise WeightsError(f"weights file {path} {wrong}")
    from open_clip.factory import load_checkpoint
    from safetensors import SafetensorError

    try:
        with torch.no_grad():
            load_checkpoint(model, str(path), strict=True, weights_only=True)
    except SafetensorError as error:
        raise WeightsError(f"weights file {path} is damaged: {_one_line(error)}") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights file {path} holds more than plain tensors and is refused: convert it to safetensors"
        ) from error
    except RuntimeError as error:
        raise WeightsError(_explain_mismatch(error, path, name)) from error
    except (EOFError, OSError, KeyError, ValueError, AttributeError, StopIteration) as error:
        raise WeightsError(
            f"weights file {path} is damaged or not a checkpoint of '{name}': {_one_line(error)}"
        ) from error


def _explain_mismatch(error: RuntimeError, path: Path, name: str) -> str:
    text = str(error)
    counts = []
    for what, pattern in [
        ("missing", r"Missing key\(s\)[^:]*: (.*)"),
        ("unexpected", r"Unexpected key\(s\)[^:]*: (.*)"),
    ]:
        found = re.search(pattern, text)
        if found:
            keys = re.findall(r'"([^"]+)"', found.group(1))
            counts.append(f"{len(keys)} {what} ({', '.join(keys[:SHOWN_KEYS])}{', ...' * (len(keys) > SHOWN_KEYS)})")
    shapes = re.findall(r"size mismatch for ([\w.]+)", text)
    if shapes:
        counts.append(
            f"{len(shapes)} of another shape ({', '.join(shapes[:SHOWN_KEYS])}{', ...' * (len(shapes) > SHOWN_KEYS)})"
        )
    if not counts:
        return f"weights file {path} cannot be read: {_one_line(error)}"
    return f"weights file {path} does not fit '{name}': {'; '.join(counts)}; name the architecture it was trained with"


def _listed(keys: list[str], what: str) -> str:
    more = ", ..." if len(keys) > SHOWN_KEYS else ""
    return f"{len(keys)} {what} ({', '.join(keys[:SHOWN_KEYS])}{more})"


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
