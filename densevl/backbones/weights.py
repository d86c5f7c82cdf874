"""Loading a weights file into an open_clip model, safely, with causes named.

Only safetensors and `torch.load(weights_only=True)` are used; nothing unpickles arbitrary objects.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from densevl.errors import WeightsError

SHOWN_KEYS = 3
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
POINTER = b"version https://git-lfs"


def looks_wrong(path: Path) -> str | None:
    """Why this file cannot be weights, judged by its first bytes, or None."""
    if path.suffix.lower() not in SUFFIXES:
        return f"is not of a known kind; its name must end in {', '.join(SUFFIXES)}"
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
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                return "is a TorchScript program, not a list of tensors: save its state_dict as safetensors"
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
        found = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"weights file {path} {found}; name a .safetensors, .pt or .bin file")
    wrong = looks_wrong(path)
    if wrong:
        raise WeightsError(f"weights file {path} {wrong}")
    from open_clip.factory import load_checkpoint

    try:
        _require_same_positions(model, path, name)
        with torch.no_grad():
            load_checkpoint(model, str(path), strict=True, weights_only=True)
    except SafetensorError as error:
        raise WeightsError(f"weights file {path} is damaged: {_one_line(error)}") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights file {path} holds more than plain tensors and is refused: convert it to safetensors"
        ) from error
    except RuntimeError as error:
        raise WeightsError(explain_mismatch(error, path, name)) from error
    except (EOFError, OSError, KeyError, ValueError, AttributeError, StopIteration) as error:
        raise WeightsError(
            f"weights file {path} is damaged or not a checkpoint of '{name}': {_one_line(error)}"
        ) from error


def _require_same_positions(model: nn.Module, path: Path, name: str) -> None:
    """open_clip resizes positional tables that do not fit, which hides weights of another input size or context."""
    if path.suffix.lower() == ".safetensors":
        with safe_open(path, "pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    else:
        state = torch.load(path, map_location="meta", weights_only=True)
        state = state.get("state_dict", state) if isinstance(state, dict) else {}
        shapes = {key.removeprefix("module."): tuple(t.shape) for key, t in state.items() if hasattr(t, "shape")}
    for key, tensor in model.state_dict().items():
        if key.endswith("positional_embedding") and shapes.get(key, tuple(tensor.shape)) != tuple(tensor.shape):
            raise WeightsError(
                f"weights file {path} does not fit '{name}': {key} is {shapes[key]}, not {tuple(tensor.shape)}; "
                "it was trained for another input size or text length: name that architecture"
            )


def explain_mismatch(error: RuntimeError, path: Path, name: str) -> str:
    text = str(error)
    counts = []
    for what in ("Missing", "Unexpected"):
        found = re.search(what + r" key\(s\)[^:]*: (.*)", text)
        if found:
            counts.append(_listed(re.findall(r'"([^"]+)"', found.group(1)), what.lower()))
    shapes = re.findall(r"size mismatch for ([\w.]+)", text)
    if shapes:
        counts.append(_listed(shapes, "of another shape"))
    if not counts:
        return f"weights file {path} cannot be read: {_one_line(error)}"
    return f"weights file {path} does not fit '{name}': {'; '.join(counts)}; name the architecture it was trained with"


def _listed(keys: list[str], what: str) -> str:
    more = ", ..." if len(keys) > SHOWN_KEYS else ""
    return f"{len(keys)} {what} ({', '.join(keys[:SHOWN_KEYS])}{more})"


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
