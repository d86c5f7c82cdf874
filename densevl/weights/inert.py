"""Torch's archives read as data: nothing is imported and nothing is run, whatever classes a file names.

A checkpoint of torch and a TorchScript program are both zip archives: a pickle, and a record of bytes for each storage.
Here tensors are made from the records, dicts and lists are read as themselves, and any other object becomes an `Inert`
that keeps its state. So training options, numpy's scalars and whole modules are neither an obstacle nor a danger.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

MOST_MEMO = 1 << 22  # largest number of memoised objects
LARGER = "larger than its values"
DEEPEST = 64  # modules within modules
LOCAL_HEADER = 30  # bytes before the name of a member
_STORAGES = {
    **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
    **{"Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128},
}
_PARTS = ("_parameters", "_buffers", "_modules")


class Inert:
    """An object of a class that is not imported. Attributes: state: from its pickle."""

    def __new__(cls, *given: Any, **named: Any) -> Inert:
        made = super().__new__(cls)
        made.state = {}
        return made

    def __init__(self, *given: Any, **named: Any) -> None:
        self.state: Any = self.state

    def __call__(self, *given: Any, **named: Any) -> Inert:
        return Inert()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(self.state, dict):
            self.state[key] = value

    def append(self, value: Any) -> None:
        """Items of a list subclass, which are not needed."""

    extend = add = append


class _Dict(dict[Any, Any]):
    """A dict without its own attributes."""

    def __setstate__(self, state: Any) -> None:
        """Attributes beside its items, which are not needed."""


class Odd:
    """A tensor without plain values of its own. Attributes: kind: "sparse or nested", ..."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


def read_archive(path: Path, archive: zipfile.ZipFile, root: str) -> Any:
    """Read the pickle of an archive; tensors are mapped from the file.

    Args:
        root: the folder within the archive, with "/".

    Raises:
        Exception: of any kind, for a damaged file.
    """
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are big-endian")
    data = archive.read(f"{root}data.pkl")
    scan(data)
    return _Reader(path, archive, root, data).load()


def scan(data: bytes) -> None:
    """Refuse a pickle that claims larger lengths than it has, because its reader would first allocate memory for them.

    Raises:
        ValueError: it does.
    """
    for opcode, argument, _ in pickletools.genops(data):
        if "PUT" in opcode.name and int(argument or 0) > MOST_MEMO:
            raise ValueError("it numbers more objects than it has")


def tensors_of(content: Any) -> dict[str, Any]:
    """The state dict of a module that was pickled whole, or scripted: tensors by dotted names."""
    return dict(_walk(content, "", 0, set()))


def _walk(content: Any, name: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(content, torch.Tensor | Odd):
        yield name, content
    if not isinstance(content, Inert) or id(content) in seen or depth > DEEPEST:
        return
    seen.add(id(content))
    state = content.state if isinstance(content.state, Mapping) else {}
    if any(part in state for part in _PARTS):  # a torch.nn.Module
        groups = [state.get(part) for part in _PARTS]
        state = {key: value for group in groups if isinstance(group, Mapping) for key, value in group.items()}
    for key, value in state.items():
        if isinstance(key, str):
            yield from _walk(value, f"{name}.{key}" if name else key, depth + 1, seen)


class _Reader(pickle.Unpickler):
    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.archive, self.root = archive, root
        self.whole = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
        self.known: dict[str, torch.UntypedStorage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Never import: return torch's constructors of tensors, or `Inert`."""
        if module == "torch" and name.endswith("Storage"):
            return _Kind(_STORAGES.get(name.removesuffix("Storage"), torch.quint8))
        if module.startswith("torch"):
            found = {
                "_rebuild_tensor_v2": _rebuild,
                "_rebuild_tensor_v3": _rebuild_v3,
                "_rebuild_parameter": _first,
                "_rebuild_parameter_with_state": _first,
                "_rebuild_from_type_v2": _rebuild_from_type,
                "_rebuild_sparse_tensor": _sparse,
                "_rebuild_nested_tensor": _sparse,
                "_rebuild_qtensor": _quantized,
                "_rebuild_meta_tensor_no_storage": _meta,
                "UntypedStorage": _Kind(torch.uint8),
                "Size": tuple,
            }.get(name)
            kind = getattr(torch, name, None) if module == "torch" else None
            return found or (kind if isinstance(kind, torch.dtype) else Inert)
        if module == "collections":
            return {"OrderedDict": _Dict, "defaultdict": _default}.get(name, Inert)
        return Inert

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage of the archive."""
        tag, kind, key, _, count = pid
        if tag != "storage" or not isinstance(kind, _Kind) or not isinstance(key, str) or "/" in key:
            raise ValueError("it refers to something that is not a storage")
        if key not in self.known:
            self.known[key] = self._record(f"{self.root}data/{key}")
        itemsize = kind.dtype.itemsize
        if isinstance(count, bool) or not 0 <= count * itemsize <= self.known[key].nbytes():
            raise ValueError(f"its storage {key[:20]} has fewer bytes than it says")
        return _Storage(self.known[key], kind.dtype)

    def _record(self, name: str) -> torch.UntypedStorage:
        member = self.archive.getinfo(name)
        file = self.archive.fp
        if file is None:
            raise ValueError("it is closed")
        file.seek(member.header_offset)
        head = file.read(LOCAL_HEADER)
        start = member.header_offset + LOCAL_HEADER
        start += int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        if head[:4] != b"PK\x03\x04" or start + member.file_size > self.whole.nbytes():
            raise ValueError(f"its record {name[:40]} lies outside")
        return self.whole[start : start + member.file_size]


class _Kind:
    """The class of a storage. Attributes: dtype: of its numbers."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Storage:
    def __init__(self, values: torch.UntypedStorage, dtype: torch.dtype) -> None:
        self.values, self.dtype = values, dtype


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    return _tensor(storage, offset, size, stride, storage.dtype)


def _rebuild_v3(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Any:
    return _tensor(storage, offset, size, stride, dtype)


def _tensor(storage: _Storage, offset: Any, size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor | Odd:
    """A view of a storage, no larger than the numbers in it."""
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a tensor has an offset, a size or a stride that is not an integer from 0 on")
    if dtype in (torch.quint8, torch.qint8, torch.qint32):
        return Odd("quantized")
    held = storage.values.nbytes() // dtype.itemsize
    if math.prod(size) > held:
        return Odd(LARGER)
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True)) if all(size) else 0
    if last >= held and all(size):
        raise ValueError("a tensor reaches outside its storage")
    values = storage.values
    if values.data_ptr() % dtype.itemsize:
        values = values.clone()  # another program may not have aligned the record
    return torch.empty(0, dtype=dtype).set_(values, offset, tuple(size), tuple(stride))


def _first(value: Any, *rest: Any) -> Any:
    return value


def _default(*given: Any) -> dict[Any, Any]:
    return _Dict()


def _rebuild_from_type(function: Any, kind: Any, given: Any, state: Any) -> Any:
    return function(*given)


def _sparse(*given: Any) -> Odd:
    return Odd("sparse or nested")


def _quantized(*given: Any) -> Odd:
    return Odd("quantized")


def _meta(*given: Any) -> Odd:
    return Odd("meta")
