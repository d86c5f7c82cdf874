"""The operating system as it is on a bad day: it ends the process at a given moment, or its disk takes no more."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Killed(BaseException):
    """The process is gone; whatever still runs of it in a test can change no file."""


class _System:
    """Sees everything that Python does to files below a folder. A hook cannot be removed, so there is one."""

    def __init__(self) -> None:
        self.folder, self.act = "", None
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.act is None:
            return
        if event == "open":
            path, mode, flags = args
            changes = any(sign in mode for sign in "wax+") if isinstance(mode, str) else bool(flags & CHANGING)
            paths = (path,) if changes else ()
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            paths = args[:1]
        else:
            return
        if any(isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder) for path in paths):
            self.act(event, os.fspath(paths[0]))


_SYSTEM = _System()


@contextmanager
def acting(folder: Path, act: Callable[[str, str], None]) -> Iterator[None]:
    """Do something before each change of a file below a folder."""
    _SYSTEM.folder, _SYSTEM.act = str(folder), act
    try:
        yield
    finally:
        _SYSTEM.act = None


def changes(folder: Path, work: Callable[[], Any]) -> int:
    """Do the work and count the changes of files."""
    seen: list[str] = []
    with acting(folder, lambda event, path: seen.append(event)):
        work()
    return len(seen)


def killed_at(moment: int, folder: Path, work: Callable[[], Any]) -> None:
    """Do the work until its n-th change of a file, from which on no change is made; what was being opened is cut."""
    seen = 0

    def act(event: str, path: str) -> None:
        nonlocal seen
        seen += 1
        if seen <= moment:
            return
        if seen == moment + 1 and event == "open" and os.path.basename(path).startswith(".densevl-"):
            _SYSTEM.act, own = None, _SYSTEM.act
            Path(path).write_bytes(b"\x89PNG half of it")
            _SYSTEM.act = own
        raise Killed

    with acting(folder, act), suppress(Killed):
        work()


def full_from(moment: int, folder: Path) -> Any:
    """A disk that takes nothing new from the n-th change on; files can be removed."""
    seen = 0

    def act(event: str, path: str) -> None:
        nonlocal seen
        seen += 1
        if seen > moment and event in ("open", "os.mkdir", "os.rename"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    return acting(folder, act)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Files that grow no further, so that a write is cut: by the system itself, for libraries in C too."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
