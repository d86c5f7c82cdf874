"""From the path of a weights file to its tensors by name, read as data: nothing in a file is run.

The first bytes show what a file is. Safetensors, torch's archives (see `inert`) and torch's files from before version
1.6 (`torch.load(weights_only=True)`) are read; others are refused, with their kind and the way out. Tensors are mapped
from the file where its form allows, so unused ones cost no memory. Sizes are checked before allocating: a file cannot
make the reader take much more time or memory than a model of its size would.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from densevl.errors import WeightsError
from densevl.files import shown
from densevl.saved import foreign, said
from densevl.weights.inert import LARGER, Inert, Odd, read_archive, tensors_of

State = dict[str, torch.Tensor]

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""The usual suffixes of weights files."""
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "teacher")
"""Keys under which training programs store the tensors, besides their optimiser's; the first that exists is used."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes of DistributedDataParallel and torch.compile, removed if every name has them."""

MOST_TENSORS = 20_000  # takes a second to read; a ViT-bigG with its optimiser has 6,000
MOST_HEADER = 16 << 20  # bytes of names and shapes in JSON, a second of parsing
MOST_PICKLE = 4 << 20  # bytes of the same in a pickle, which is slower
MOST_NESTED = 4  # containers within containers
_ZIP, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number of torch before version 1.6
_AGAIN = "download or copy it again"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The content of a weights file.

    Attributes:
        path: the file.
        tensors: by name, on the CPU, as stored; many are mapped from the file.
        header: the strings of a safetensors header; {} for other forms.
        notes: warnings: which of several models in the file was taken.
    """

    path: Path
    tensors: State
    header: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class _Refusal(Exception):
    """Why a file is not read, in words that continue "it": "is empty: ..."."""


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a weights file.

    Args:
        path: a safetensors file, or a torch checkpoint of a dict of tensors, with any suffix.

    Returns:
        Its tensors: dense, and no larger than their values in the file. Other values of the dict are left out.

    Raises:
        WeightsError: the file is missing, damaged, not weights, or holds more than plain content.
    """
    path = Path(path)
    if not os.path.isfile(path):
        found = "is a folder" if os.path.isdir(path) else "does not exist"
        raise bad_file(path, f"{found}; name a .safetensors, .pt or .pth file")
    try:
        content, header = _recognised(path)(path)
        notes: list[str] = []
        return Checkpoint(path, _named(_unwrapped(content, path, notes)), header, tuple(notes))
    except _Refusal as refusal:
        raise bad_file(path, f"cannot be read: it {refusal}") from refusal.__cause__
    except Exception as error:  # parsers raise many types on damaged data
        if isinstance(error, PermissionError):
            raise bad_file(path, f"cannot be read: {said(error)}") from error
        raise bad_file(path, f"cannot be read: it is damaged ({said(error)}); {_AGAIN}") from error


def bad_file(path: str | os.PathLike[str], why: str) -> WeightsError:
    """The common form of errors about a weights file, to be raised: "weights file 'x.pt' is empty"."""
    return WeightsError(f"weights file {shown(path)} {why}")


def below(tensors: Mapping[str, torch.Tensor], prefix: str) -> State:
    """The tensors whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


_Read = Callable[[Path], tuple[Any, dict[str, str]]]


def _recognised(path: Path) -> _Read:
    """The reader of a file, by its first bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    header = int.from_bytes(head[:8], "little")
    if not head:
        raise _Refusal(f"is empty: {_AGAIN}")
    if head[8:9] == b"{" and header <= MOST_HEADER:  # tested first, because these eight bytes may be any text
        if 8 + header > size:
            raise _Refusal(f"is cut off, its header is incomplete: {_AGAIN}")
        return _read_safetensors
    if reason := foreign(head):
        raise _Refusal(reason)
    if head.startswith(_ZIP):
        return _read_zip
    if head.startswith(_LEGACY):
        return _read_legacy
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
        raise _Refusal("is a plain pickle, which may run code: convert it to safetensors")
    if path.suffix.lower() == ".safetensors":
        raise _Refusal(f"is not a safetensors file, its header is malformed: {_AGAIN}")
    if path.suffix.lower() not in SUFFIXES:
        raise _Refusal(f"is not of a known kind; its name must end in {', '.join(SUFFIXES)}")
    raise _Refusal(f"is neither safetensors nor a torch checkpoint: {_AGAIN}")


def _read_safetensors(path: Path) -> tuple[Any, dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        keys = file.keys()
        _require_few(len(keys))
        return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}


def _read_zip(path: Path) -> tuple[Any, dict[str, str]]:
    """A checkpoint of torch since version 1.6: an archive of a pickle and of a record for each storage."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16) - 22))
        end = file.read()
    at = end.rfind(_ZIP_END)
    if at < 0:
        raise _Refusal(f"is cut off, its end is missing: {_AGAIN}")
    _require_few(int.from_bytes(end[at + 10 : at + 12], "little"))  # before a list of them is made
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        pickles = [record for record in records if record.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Refusal("is a zip archive, but not a torch checkpoint: unpack it first")
        root = pickles[0].filename.removesuffix("data.pkl")
        if any(record.compress_type for record in records if record.filename.startswith(f"{root}data")):
            raise _Refusal("is compressed, which torch does not do: unpack and save it again")
        if pickles[0].file_size > MOST_PICKLE:
            raise _Refusal("holds more names than any model: save its state_dict alone")
        return read_archive(path, archive, root), {}


def _read_legacy(path: Path) -> tuple[Any, dict[str, str]]:
    """A checkpoint of torch before version 1.6: several pickles, then the storages."""
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MOST_HEADER))
    for _ in range(4):  # a magic number, the version of the format, the machine, and the content
        tensors = 0
        for opcode, _, _ in pickletools.genops(head):
            tensors += opcode.name == "BINPERSID"  # a storage, which is outside the pickle
            _require_few(tensors)
    try:
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True), {}
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if not found:
            raise
        raise _Refusal(
            f"holds more than plain tensors ({found[1][:80]}) and is refused: save its state_dict alone, as safetensors"
        ) from error


def _require_few(count: int) -> None:
    if count > MOST_TENSORS:
        raise _Refusal(f"holds {count:,} tensors or more, the limit is {MOST_TENSORS:,}: save its state_dict alone")


def _unwrapped(content: Any, path: Path, notes: list[str]) -> Mapping[Any, Any]:
    """The innermost dict, or the tensors of a module that was saved whole; `notes` records a choice among several."""
    for _ in range(MOST_NESTED):
        if isinstance(content, Inert):
            content = tensors_of(content)
        if not isinstance(content, Mapping):
            raise _Refusal(f"holds a {type(content).__name__}, not a dict of tensors: save a state_dict")
        name = _container(content)
        if name is None:
            return content
        if rivals := [other for other in _models(content) if other != name]:
            notes.append(
                f"weights file {shown(path)} holds several models: taken {name!r}, not {', '.join(map(repr, rivals))}; "
                "if that is wrong, save the one you mean alone"
            )
        content = content[name]
    raise _Refusal("holds dicts within dicts: save its state_dict alone")


def _container(content: Mapping[Any, Any]) -> Any:
    """The key of the inner dict that holds the tensors; None if the dict holds them itself.

    Raises:
        _Refusal: several may hold them, and none has a known name.
    """
    if known := next((name for name in CONTAINERS if isinstance(content.get(name), Mapping | Inert)), None):
        return known
    found = () if any(isinstance(value, torch.Tensor | Odd) for value in content.values()) else _models(content)
    if len(found) > 1:
        raise _Refusal(
            f"holds several dicts of tensors ({', '.join(map(repr, found))[:120]}): save the one you mean alone"
        )
    return found[0] if found else None


def _models(content: Mapping[Any, Any]) -> list[str]:
    """The keys of the dicts of tensors within a dict, except those with far fewer tensors than another."""
    counts = {
        key: sum(isinstance(tensor, torch.Tensor | Odd) for tensor in value.values())
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Mapping)
    }
    most = max(counts.values(), default=0)
    return [key for key, count in counts.items() if count and 2 * count >= most]


def _named(content: Mapping[Any, Any]) -> State:
    """The tensors of a dict, each checked, without prefixes that all names share."""
    _require_few(sum(isinstance(value, torch.Tensor) for value in content.values()))
    tensors: State = {}
    for key, value in content.items():
        if isinstance(value, torch.Tensor | Odd):
            if not isinstance(key, str):
                raise _Refusal(f"names a tensor by the {type(key).__name__} {str(key)[:20]}: save a state_dict")
            tensors[key] = _plain(key, value)
    if not tensors:
        raise _Refusal("holds no tensors: save a state_dict")
    while shared := next((p for p in PREFIXES if tensors and all(key.startswith(p) for key in tensors)), ""):
        tensors = below(tensors, shared)
    return tensors


def _plain(key: str, tensor: torch.Tensor | Odd) -> torch.Tensor:
    """Refuse a tensor without values of its own, or that repeats them to a size that the file does not have."""
    if isinstance(tensor, Odd) and tensor.kind != LARGER:
        raise _Refusal(f"holds a {tensor.kind} tensor ({key[:80]!r}): save a dense state_dict")
    if isinstance(tensor, Odd):
        raise _Refusal(f"holds a tensor {LARGER} ({key[:80]!r}): save it with .contiguous()")
    if tensor.is_quantized or tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided:
        kind = "quantized" if tensor.is_quantized else "meta" if tensor.is_meta else "sparse or nested"
        raise _Refusal(f"holds a {kind} tensor ({key[:80]!r}): save a dense state_dict")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise _Refusal(f"holds a tensor larger than its values ({key[:80]!r}): save it with .contiguous()")
    return tensor
