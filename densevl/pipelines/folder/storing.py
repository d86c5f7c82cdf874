"""Where results are written: a local folder, or an address for fsspec ("s3://bucket/results")."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevl.errors import ImageError, OutputError
from densevl.files import atomic_write, guard, shown, sweep, unwritten
from densevl.images.addresses import is_address, local, opened
from densevl.pipelines.folder.watch import Job

if TYPE_CHECKING:
    from densevl.pipelines.folder.tasks import Kind


class Store(ABC):
    """A place of files by name, with "/" between folders. It can be pickled. Attributes: place: as given."""

    place: str

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: If it does not exist.
            OutputError: If the folder has become a file.
        """

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Return whether a file exists."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file completely or not at all.

        Raises:
            OutputError: If it cannot be written.
        """

    @abstractmethod
    def append(self, name: str, data: bytes) -> None:
        """Append to a file at once."""

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """Remove files that exist."""

    @abstractmethod
    def save(self, job: Job, kind: Kind, result: Any) -> None:
        """Write the files of one image."""

    @abstractmethod
    def guard(self, names: Iterable[str], *, inputs: Iterable[str], overwrite: bool) -> None:
        """Refuse to overwrite files that densevl did not write; see `files.guard`."""

    def sweep(self, folders: Iterable[str]) -> None:
        """Remove the unfinished files of a killed run in these folders."""
        return None

    def has(self, job: Job, kind: Kind) -> bool:
        """Return whether all files of an image exist. Each is complete or absent."""
        return all(self.exists(f"{job.name}{ending}") for ending in kind.endings)

    def renew(self, name: str, data: bytes) -> str:
        """Write a file unless it already has this content, and return where it is."""
        try:
            if self.read(name) == data:
                return self.where(name)
        except FileNotFoundError:
            pass
        self.write(name, data)
        return self.where(name)

    def where(self, name: str) -> str:
        """Return a file's path or address."""
        return f"{self.place.rstrip('/')}/{name}"


def open_store(place: str | os.PathLike[str]) -> Store:
    """Return the store of a path or an address.

    Raises:
        OutputError: If it cannot be a folder.
        MissingExtraError: If it is an address and fsspec is not installed.
    """
    text = os.fspath(place)
    return Remote(text) if is_address(text) else Local(local(text))


class Local(Store):
    """A local folder."""

    def __init__(self, place: str) -> None:
        self.place, self.path = place or ".", Path(place)
        try:
            there = next((folder for folder in (self.path, *self.path.parents) if folder.exists()), None)
        except (OSError, RuntimeError) as error:  # a name that is too long, or circular links
            reason = getattr(error, "strerror", None) or "its links are circular"
            raise OutputError(f"results cannot be written to {shown(place)}: {reason}") from error
        if there is not None and not there.is_dir():
            raise OutputError(
                f"{shown(there)} is a file, so results cannot be written to {shown(place)}; name a folder"
            )

    def read(self, name: str) -> bytes:
        """See `Store`."""
        try:
            return (self.path / name).read_bytes()
        except NotADirectoryError as error:  # something else has taken its place
            raise unwritten(self.path / name, error) from error

    def exists(self, name: str) -> bool:
        """See `Store`."""
        return os.path.exists(f"{self.place}{os.sep}{name}")

    def write(self, name: str, data: bytes) -> None:
        """See `Store`."""
        atomic_write(self.path / name, data)

    def append(self, name: str, data: bytes) -> None:
        """See `Store`."""
        path, size = self.path / name, 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            size = path.stat().st_size if path.exists() else 0
            with open(path, "ab") as file:
                file.write(data)
        except OSError as reason:
            with suppress(OSError):  # remove the part that was written
                os.truncate(path, size) if size else path.unlink(missing_ok=True)
            raise unwritten(path, reason, len(data)) from reason

    def remove(self, names: Iterable[str]) -> None:
        """See `Store`."""
        for name in names:
            try:
                os.unlink(f"{self.place}{os.sep}{name}")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise OutputError(f"cannot replace {shown(self.path / name)}: {error.strerror}") from error

    def save(self, job: Job, kind: Kind, result: Any) -> None:
        """See `Store`."""
        result.save(self.path / f"{job.name}{kind.main}", overwrite=True)  # the loop called `guard`

    def guard(self, names: Iterable[str], *, inputs: Iterable[str], overwrite: bool) -> None:
        """See `Store`."""
        guard([self.path / name for name in names], inputs=inputs, overwrite=overwrite)

    def sweep(self, folders: Iterable[str]) -> None:
        """See `Store`."""
        for folder in {self.path / folder for folder in folders}:
            sweep(folder)


class Remote(Store):
    """An address for fsspec, where an object is complete or absent."""

    def __init__(self, place: str) -> None:
        try:
            self._fs, self._root = opened(place)
        except ImageError as error:
            raise OutputError(f"results cannot be written to {shown(place)}: {error}") from error
        self.place = place

    def read(self, name: str) -> bytes:
        """See `Store`."""
        return self._fs.cat_file(self._at(name))

    def exists(self, name: str) -> bool:
        """See `Store`."""
        return self._fs.exists(self._at(name))

    def write(self, name: str, data: bytes) -> None:
        """See `Store`."""
        try:
            self._fs.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(self._at(name), data)
        except Exception as error:  # each file system raises its own errors
            raise OutputError(f"cannot write {self.where(name)} ({len(data):,} bytes): {error}") from error

    def append(self, name: str, data: bytes) -> None:
        """See `Store`. Objects cannot grow, so the whole object is written again."""
        self.write(name, (self.read(name) if self.exists(name) else b"") + data)

    def remove(self, names: Iterable[str]) -> None:
        """See `Store`."""
        for name in names:
            if self.exists(name):
                self._fs.rm_file(self._at(name))

    def save(self, job: Job, kind: Kind, result: Any) -> None:
        """See `Store`."""
        with tempfile.TemporaryDirectory() as folder:
            result.save(Path(folder) / f"x{kind.main}")
            for ending in kind.endings:
                self.write(f"{job.name}{ending}", (Path(folder) / f"x{ending}").read_bytes())

    def guard(self, names: Iterable[str], *, inputs: Iterable[str], overwrite: bool) -> None:
        """See `Store`."""
        given = set(inputs)
        for name in names:
            where = self._fs.unstrip_protocol(self._at(name))
            if where in given:
                raise OutputError(f"{where} is one of the inputs and would be overwritten; name another --out")
            if not overwrite and self.exists(name) and b"densevl" not in self.read(name):
                raise OutputError(
                    f"{where} was not written by densevl and would be replaced; name another --out, or allow it with "
                    "--overwrite"
                )

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"
