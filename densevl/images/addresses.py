"""Images that are not local files: addresses for fsspec ("s3://bucket/x.jpg"), and members of tar archives.

A member is written as in fsspec, "tar://folder/x.jpg::photos-0000.tar". The archive may also be an address.
"""

from __future__ import annotations

import functools
import io
import os
import re
import tarfile
import threading
from collections.abc import Mapping
from typing import IO, Any
from urllib.parse import unquote

from densevl import digest
from densevl.errors import ImageError, MissingExtraError
from densevl.files import shown

_ADDRESS = re.compile(r"[a-z][a-z0-9+]+://", re.IGNORECASE)
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
TAR = "tar://"
MOST_UNPACKED = 2**29
"""Limit in bytes for a member of an archive. A photo of 100 megapixels in 16-bit colours is slightly larger."""
MOST_RATIO, SMALL = 200, 2**24
"""Limit for the ratio of unpacked to packed size of members that are not small. Photos have 1, drawings 50."""
_ARCHIVES = re.compile(r"(zip|tar|libarchive)://", re.IGNORECASE)
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")


def is_address(path: Any) -> bool:
    """Return whether this is an address rather than a path; "file://..." counts as a path."""
    return isinstance(path, str) and bool(_ADDRESS.match(path)) and not path.startswith("file://")


def local(path: str) -> str:
    """Return the path of "file:///my%20photos", and others unchanged."""
    if not path.startswith("file://"):
        return path
    plain = path.removeprefix("file://")
    plain = plain.removeprefix("localhost") if plain.startswith("localhost/") else plain
    return plain if os.path.lexists(plain) else unquote(plain)


def refuse_web(path: str, what: str) -> None:
    """Refuse web addresses, and addresses in which `pathlib.Path` removed a slash.

    Raises:
        ImageError: If it is one.
    """
    if re.match(r"data:\w+/", path, re.IGNORECASE):
        raise ImageError("a data: address contains the image itself: decode it (base64), and give the bytes")
    if re.match(r"(https?|ftps?):/", path, re.IGNORECASE):
        raise ImageError(f"{what} is an address: download it and give the file's path")
    if re.match(r"(?!file:)[a-z][a-z0-9+]+:/(?!/)", path, re.IGNORECASE) and not os.path.lexists(path):
        raise ImageError(f"{what} is an address that lost a slash in a path: give it as a string")


def key_of(path: str) -> str:
    """Return the key that two names of one image share: the absolute path, or the address."""
    return path if is_address(path) else os.path.abspath(local(path))


def opened(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it.

    Raises:
        MissingExtraError: If fsspec is not installed.
        ImageError: If there is no such protocol, its package is missing, or an archive is inside another one.
    """
    if len(_ARCHIVES.findall(address)) > 1:
        raise ImageError(_nested(address))
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(address)
    except ImportError as error:
        missing = error.name or getattr(error.__cause__, "name", None) or "fsspec"
        package = missing.partition(".")[0]
        if package == "fsspec":
            raise MissingExtraError(package, "remote", f"reading {shown(address)}") from error
        raise ImageError(f"{shown(address)} needs the package {package!r}: pip install {package}") from error
    except ValueError as error:
        raise ImageError(f"{shown(address)} cannot be read: {error}") from error


def fetch(address: str) -> bytes:
    """Return the content of an address or a member of an archive.

    Raises:
        ImageError: If it does not exist or cannot be read.
        MissingExtraError: As for `opened`.
    """
    if address.startswith(TAR):
        member, archive = split(address)
        return archive_of(archive).read(member)
    files, path = opened(address)
    try:
        if _ARCHIVES.match(address):
            _require_bounded(address, files.info(path))
        return files.cat_file(path)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{shown(address)} does not exist") from error
    except Exception as error:  # each file system raises its own errors
        raise ImageError(f"{shown(address)} cannot be read: {error}") from error


def _nested(address: str) -> str:
    return f"{shown(address)} is in an archive within an archive: unpack the outer one"


def _require_bounded(address: str, facts: Mapping[str, Any]) -> None:
    """Refuse a member that unpacks to too many bytes, or to far more than it is packed. Readers stop at its given size.

    Raises:
        ImageError: If it does.
    """
    size, packed = facts.get("size") or 0, facts.get("compress_size")
    if size > MOST_UNPACKED:
        raise ImageError(f"{shown(address)} unpacks to {size:,} bytes, over the limit of {MOST_UNPACKED:,}: unpack it")
    if packed is not None and size > max(SMALL, MOST_RATIO * packed):
        raise ImageError(
            f"{shown(address)} unpacks {packed:,} bytes to {size:,}, over the limit of {MOST_RATIO} to 1: unpack it, "
            "if you trust it"
        )


def stamp(path: str) -> list[int | None]:
    """Return size and a number that changes with the content of a file or address; None, None if it does not exist."""
    if path.startswith(TAR):
        path = split(path)[1]
    try:
        if not is_address(path):
            status = os.stat(local(path))
            return [status.st_size, status.st_mtime_ns]
        files, place = opened(path)
        facts = files.info(place)
    except (OSError, ValueError, ImageError):
        return [None, None]
    changed = next(
        (facts[name] for name in ("ETag", "etag", "mtime", "LastModified", "created") if facts.get(name)), ""
    )
    return [facts.get("size"), int(digest.of_text(str(changed))[:15], 16)]


def split(address: str) -> tuple[str, str]:
    """Split "tar://member::archive" into member and archive."""
    member, _, archive = address.removeprefix(TAR).partition("::")
    return member, archive


def braces(pattern: str) -> list[str]:
    """Expand "photos-{0000..0003}.tar" to its names, as WebDataset does."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [name for number in numbers for name in braces(pattern[: match.start()] + number + pattern[match.end() :])]


def archive_of(place: str) -> Archive:
    """Return an archive by path or address. The last few are kept open.

    Raises:
        ImageError: If it is missing or not a tar archive.
    """
    return _archive(place, *stamp(place))


@functools.lru_cache(maxsize=4)
def _archive(place: str, size: int | None, changed: int | None) -> Archive:
    return Archive(place)


class Archive:
    """A tar archive, read member by member. Attributes: members: the names of its files, in order.

    Links, devices and sparse files are ignored, because their content is not in the archive.
    """

    def __init__(self, place: str, file: IO[bytes] | None = None) -> None:
        """Open an archive. Args: place: a path or an address. file: its content, if already available."""
        try:
            if file is None and is_address(place):
                if _ARCHIVES.match(place):
                    raise ImageError(_nested(place))
                files, path = opened(place)
                file = files.open(path, "rb")
            file = file or open(local(place), "rb")  # noqa: SIM115
            if file.read(6).startswith(_COMPRESSED):  # it may unpack to fill the disk, and is slow to search
                raise ValueError("it is compressed; unpack it to a plain .tar")
            file.seek(0)
            self._tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
            self._infos = _members(self._tar)
        except FileNotFoundError as error:
            raise ImageError(f"{shown(place)} does not exist") from error
        except ImageError:
            raise
        except Exception as error:  # tarfile raises many types on damaged data
            raise ImageError(f"{shown(place)} is not a tar archive, or is damaged: {_said(error)}") from error
        self.place, self.members, self._lock = place, list(self._infos), threading.Lock()

    def read(self, member: str) -> bytes:
        """Return the content of a member.

        Raises:
            ImageError: If there is no such member, or the archive is truncated.
        """
        info = self._infos.get(member)
        if info is None:
            raise ImageError(f"{shown(self.place)} has no member {shown(member)}")
        try:
            with self._lock:
                file = self._tar.extractfile(info) or io.BytesIO()
                return file.read()
        except Exception as error:  # as above
            raise ImageError(f"{shown(member)} of {shown(self.place)} cannot be read: {_said(error)}") from error


def _members(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Return the plain files of an archive by name.

    Raises:
        ValueError: If a path leads outside, a name is repeated, or the archive is circular.
    """
    found: dict[str, tarfile.TarInfo] = {}
    for info in tar:
        name = info.name.removeprefix("./")
        if info.size < 0:
            raise ValueError(f"{shown(name)} has a negative size")  # its end would be before it, without end
        if not info.isfile() or info.issparse():
            continue
        if is_outside(name):
            raise ValueError(f"{shown(name)} leads outside of it")
        if name in found:
            raise ValueError(f"{shown(name)} is in it twice")
        found[name] = info
    return found


def is_outside(path: str) -> bool:
    """Return whether a path written by others leads outside of its folder."""
    return os.path.isabs(path) or ".." in re.split(r"[/\\]", path)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
