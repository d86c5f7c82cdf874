"""Read files that densevl wrote, JSON and arrays, as plain data within limits. A bad file raises a one-line error.

The size a file claims is checked before memory is allocated for it, so a small file cannot claim terabytes.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from densevl.errors import DensevlError, OutputError
from densevl.files import shown

MOST_BYTES = 1 << 30  # of a JSON file
MOST_MEMBERS = 1 << 20  # bytes of an archive's list of arrays
_ZIP, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        what: name of the kind. error: raised for a bad file. way_out: advice for the message, "build it again".
    """

    what: str
    error: type[DensevlError]
    way_out: str

    def bad(self, path: str | os.PathLike[str], why: str) -> DensevlError:
        """Return the error to raise: "region index 'x.npz' cannot be read: it is damaged (...); build it again"."""
        return self.error(f"{self.what} {shown(path)} cannot be read: it {why}; {self.way_out}")

    def path(self, given: Any) -> Path:
        """Return the argument as a `Path`.

        Raises:
            DensevlError: If it is not a path.
        """
        if not isinstance(given, str | os.PathLike):
            raise self.error(f"{self.what} cannot be read from {type(given).__name__}: give the path of its file")
        return Path(given)

    @contextmanager
    def sense(self, path: str | os.PathLike[str], *, inner: bool = False) -> Iterator[None]:
        """Turn whatever goes wrong while a file's content is interpreted into this kind's error.

        Args:
            inner: also convert errors of densevl, except `OutputError`. Otherwise they pass unchanged.
        """
        try:
            yield
        except Exception as error:  # bad content can raise anything
            if isinstance(error, OutputError) or (isinstance(error, DensevlError) and not inner):
                raise
            missing = f"{error} is missing" if isinstance(error, KeyError) else ""
            raise self.bad(path, f"is damaged ({missing or said(error)})") from error


def said(error: BaseException) -> str:
    """Return the reason of an error on one line of at most 200 characters."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__


def foreign(head: bytes) -> str | None:
    """Recognise a wrong file by its first bytes. Return what it is, in words that follow "it", or None."""
    if not head:
        return "is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file it points to: run 'git lfs pull'"
    if head.lstrip()[:1] == b"<":
        return "is a web page: download the file itself, not the page that shows it"
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return "is a picture"
    return None


def read_bytes(path: str | os.PathLike[str], kind: Kind, most: int = MOST_BYTES) -> bytes:
    """Return the content of a file.

    Raises:
        DensevlError: If the file is missing, a folder, unreadable, too large, or of another kind.
    """
    with _opened(path, kind) as (file, size):
        if size > most:
            raise kind.bad(path, f"has {size:,} bytes, the limit is {most:,}")
        return file.read(size)


def read_json(path: str | os.PathLike[str], kind: Kind, needed: Collection[str] = ()) -> dict[str, Any]:
    """Read a file that contains one JSON object.

    Raises:
        DensevlError: See `read_bytes`; also if it is not a JSON object, repeats a key, or lacks a needed one.
    """
    data = read_bytes(path, kind)
    with kind.sense(path):
        content = parse_json(data)
    if not isinstance(content, dict):
        raise kind.bad(path, f"holds a {type(content).__name__} where an object was expected")
    if missing := sorted(set(needed) - set(content)):
        raise kind.bad(path, f"is of another kind: it lacks '{missing[0]}'")
    return content


def parse_json(data: bytes | str) -> Any:
    """Parse JSON strictly: UTF-8, each key once, no NaN and no infinity.

    Raises:
        ValueError, RecursionError: If it is not such JSON.
    """
    return json.loads(
        data if isinstance(data, str) else data.decode("utf-8-sig"),
        object_pairs_hook=_unique,
        parse_constant=_no_number,
        parse_float=_finite,
    )


def read_arrays(path: str | os.PathLike[str], kind: Kind) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of an .npz file written by `numpy.savez`. Each is verified against its checksum.

    Raises:
        DensevlError: See `read_bytes`; also if it is not such an archive, is damaged or compressed, or contains
            something other than numbers and texts.
    """
    with _opened(path, kind) as (file, size):
        if file.read(4) != _ZIP:
            raise kind.bad(path, "is not an .npz file")
        with kind.sense(path):
            file.seek(max(0, size - (1 << 16) - 22))
            end = file.read()
            at = end.rfind(_ZIP_END)
            if at < 0:
                raise ValueError("its end is missing")
            if int.from_bytes(end[at + 12 : at + 16], "little") > MOST_MEMBERS:
                raise ValueError("it lists more arrays than densevl writes")
            with zipfile.ZipFile(file) as archive:
                return _arrays(archive, size)


def read_array(path: str | os.PathLike[str], kind: Kind) -> npt.NDArray[Any]:
    """Read an .npy file.

    Raises:
        DensevlError: See `read_bytes`; also if it is not such a file, is damaged, or contains anything but numbers.
    """
    with _opened(path, kind) as (file, size), kind.sense(path):
        return _array(file, size)


@contextmanager
def _opened(path: str | os.PathLike[str], kind: Kind) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file and yield it with its size, after checking that it exists and is not a file of a wrong kind."""
    path = kind.path(path)
    try:
        if path.is_dir():
            raise kind.bad(path, "is a folder")
        if not path.is_file():
            raise kind.bad(path, "does not exist" if not path.exists() else "is not a regular file")
        with path.open("rb") as file:
            head = file.read(64)
            if reason := foreign(head):
                raise kind.bad(path, reason)
            file.seek(0)
            yield file, path.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise kind.bad(path, f"cannot be opened ({said(error)})") from error


def _arrays(archive: zipfile.ZipFile, size: int) -> dict[str, npt.NDArray[Any]]:
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(set(names)) < len(names) or not all(name.endswith(".npy") for name in names):
        raise ValueError("it holds something other than arrays, or two with one name")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it is compressed, which densevl does not do")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its arrays are larger than the file")
    found = {}
    for member in members:
        with archive.open(member) as file:
            found[member.filename.removesuffix(".npy")] = _array(file, member.file_size)
    return found


def _array(file: IO[bytes], size: int) -> npt.NDArray[Any]:
    """Read an array after checking that its header does not claim more than the file has."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it is an array file of version {version[0]}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject or dtype.kind not in "biufSU":
        raise ValueError(f"it holds {dtype}, not numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"an array {shape} of {dtype} is not what its {size:,} bytes hold")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {shown(twice)} appears twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)
