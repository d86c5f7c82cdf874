"""Write files completely or not at all, show paths on one line, and name files so that none replaces another."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from densevl import digest
from densevl.errors import OutputError

#: Appended to a stem by `SegmentationResult.save` for the overlay picture; `unique_stems` keeps that name free too.
OVERLAY_MARK = "_overlay"
#: The same for the picture of the confidence.
CONFIDENCE_MARK = "_confidence"
_MARKS = (OVERLAY_MARK, CONFIDENCE_MARK)
#: The file in a folder of results that records how they were made; see `densevl.pipelines.folder.loop`.
RUN_FILE = "densevl.json"
#: What a killed run may leave in a folder: files that were not moved into place yet.
PARTS = ".densevl-*.part"
#: Errors of a disk that accepts no more data.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_SIGNED = (".json", ".jsonl", ".html", ".md", ".xml", ".safetensors")
_SIGNATURE = b"densevl"
# Files that the JSON of another stem speaks for: x_overlay.png and x.json.
_COMPANIONS = (*(f"{mark}{end}" for mark in _MARKS for end in (".png", ".tif")), "_labels.zip", "_frames.jsonl")
# A key of regions' JSON, which has no other file of its own stem: x.png beside it may be the photo.
_ALONE = b'\n "regions": ['

# File systems allow 255 bytes per name; this leaves room for a mark, an extension and a temporary name.
_STEM_BYTES = 150
# Not allowed in Windows names, or (surrogates) not encodable as UTF-8.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*\ud800-\udfff]')
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path in quotes on one line, whatever its characters and length."""
    text = os.fspath(path)
    return repr(text if len(text) < 300 else f"...{text[-200:]}")


def json_text(content: Any, **how: Any) -> str:
    """Return content as JSON text, with null in place of NaN and infinity.

    Args:
        how: keyword arguments of `json.dumps`.
    """
    return json.dumps(_finite(content), allow_nan=False, **how)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def atomic_write(path: str | os.PathLike[str], data: bytes | Iterable[bytes]) -> Path:
    """Write one file so that a reader or a later run sees either all of it or nothing.

    Args:
        path: where to write. Missing folders are created, and an existing file is replaced.
        data: the whole content, or an iterable of its pieces. If the iterable fails, nothing is written.

    Returns:
        The path written.

    Raises:
        OutputError: If the folder or the file cannot be written. No partial file is left behind.
    """
    return atomic_write_all({Path(path): data})[0]


def atomic_write_all(contents: Mapping[Path, bytes | Iterable[bytes]]) -> list[Path]:
    """Write several files that belong together. All are staged beside their targets before the first is moved.

    A full disk therefore leaves earlier files unchanged. A killed process leaves no partial content, but the files are
    not forced through the operating system's cache: a power cut may still lose the newest ones.

    Args:
        contents: data by path. Missing folders are created, and existing files are replaced.

    Returns:
        The paths written, in the order given.

    Raises:
        OutputError: If a folder or file cannot be written. No temporary or partial file is left behind.
    """
    with staged(contents) as parts:
        for part, (path, data) in zip(parts, contents.items(), strict=True):
            try:
                with open(part, "wb") as file:
                    for piece in [data] if isinstance(data, bytes) else data:
                        file.write(piece)
            except (OSError, ValueError) as error:  # ValueError: a null byte in the name
                raise unwritten(path, error, len(data) if isinstance(data, bytes) else _size(part)) from error
    return list(contents)


@contextlib.contextmanager
def staged(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Stage files that belong together: write them in the context; they move into place if nothing was raised.

    Args:
        paths: the targets. Missing folders are created, and existing files are replaced.

    Yields:
        For each target, another name beside it that nobody else uses meanwhile. It is derived from the file's name, so
        that writing the file again takes over what a killed process left of it.

    Raises:
        OutputError: If a folder or file cannot be written. No temporary or partial file is left behind.
    """
    parts: list[tuple[Path, Path]] = []
    path, moved = Path(), 0
    with contextlib.ExitStack() as held:
        try:
            try:
                for path in paths:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if path.is_dir():
                        raise IsADirectoryError("a folder has this name")
                    parts.append((_part(path, held), path))
            except (OSError, ValueError) as error:
                raise unwritten(path, error) from error
            try:
                yield [part for part, _ in parts]
            except OSError as error:
                at = [pair for pair in parts if str(pair[0]) == str(error.filename)]
                if not at and error.errno not in REFUSED:  # reading the content failed, not writing it
                    raise
                part, path = (at or parts)[0]
                raise unwritten(path, error, _size(part)) from error
            try:
                for part, path in parts:
                    os.replace(part, path)
                    moved += 1
            except (OSError, ValueError) as error:
                raise unwritten(path, error, _size(part)) from error
        finally:
            # A file in its place has freed its staging name, which another process may use by now.
            for part, _ in parts[moved:]:
                with contextlib.suppress(OSError, ValueError):
                    part.unlink(missing_ok=True)


def _part(path: Path, held: contextlib.ExitStack) -> Path:
    """Return the staging name of a file. No other process or thread gets it before `held` is closed."""
    part = path.parent / f".densevl-{digest.of_text(path.name)[:16]}.part"
    with contextlib.suppress(ImportError, OSError, ValueError):  # some systems have no locks
        import fcntl

        place = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, place)
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            own = os.fstat(place)
            # Another process may have moved it while it was opened. A link would lead to somebody else's file.
            if os.path.samestat(own, os.lstat(part)) and stat.S_ISREG(own.st_mode) and own.st_nlink == 1:
                held.push(opened.pop_all())
                return part
    return path.parent / f".densevl-{secrets.token_hex(8)}.part"


def unwritten(path: Path, error: Exception, size: int = 0) -> OutputError:
    """Return the error for a file that cannot be written. `size`: its bytes, or those written so far; 0 hides it."""
    bytes_ = f" ({size:,} bytes)" if size else ""
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        reason = next((f"{shown(above)} is a file, not a folder" for above in path.parents if above.is_file()), reason)
    return OutputError(f"cannot write {shown(path)}{bytes_}: {reason}")


def _size(path: Path) -> int:
    """Return the bytes a file has now, 0 if it does not exist."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


def save_all(
    contents: Mapping[Path, bytes | Iterable[bytes]], *, inputs: Iterable[Any] = (), overwrite: bool = False
) -> list[Path]:
    """Write several files like `atomic_write_all`, after `guard`: what the `save` of a result does.

    Args:
        inputs: what the result was made from. Only paths count.
        overwrite: allow replacing files that densevl did not write.

    Raises:
        OutputError: If a file is an input, was not written by densevl, or cannot be written.
    """
    guard_saved(contents, inputs=inputs, overwrite=overwrite)
    return atomic_write_all(contents)


def guard_saved(paths: Iterable[Path], *, inputs: Iterable[Any] = (), overwrite: bool = False) -> None:
    """Call `guard` for a `save`, whose caller is Python."""
    given = [one for one in inputs if isinstance(one, str | os.PathLike)]
    guard(paths, inputs=given, overwrite=overwrite, out="another path", allow="overwrite=True")


def target_of(path: Any, ending: str | None = None, what: str = "") -> Path:
    """Return the path of a file to write.

    Args:
        ending: the only extension allowed, in lower case. what: what has it, for the message.

    Raises:
        OutputError: If it is not a path, or has another extension.
    """
    if not isinstance(path, str | os.PathLike):
        raise OutputError(f"cannot save to a {type(path).__name__}: give the path of a file")
    if ending is not None and Path(path).suffix.lower() != ending:
        raise OutputError(f"cannot save {shown(path)}: {what}, end the name in {ending}")
    return Path(path)


def renew(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write one file like `atomic_write`, unless it already has this content."""
    path = Path(path)
    try:
        if path.read_bytes() == data:
            return path
    except (OSError, ValueError):
        pass
    return atomic_write(path, data)


def guard(
    paths: Iterable[str | os.PathLike[str]],
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    overwrite: bool = False,
    out: str = "another --out",
    allow: str = "--overwrite",
) -> None:
    """Refuse to overwrite a file that densevl did not write. Every command calls this before it writes its first file.

    Args:
        paths: the files that will be written. inputs: the files that were given, never overwritten.
        overwrite: allow replacing files that densevl did not write.
        out: what to name instead, and allow: what sets `overwrite`, for the message.

    Raises:
        OutputError: If a path is an input, a folder, or a file that densevl did not write.
    """
    there: dict[tuple[int, int], Path] = {}
    for path in map(Path, paths):
        with contextlib.suppress(OSError, ValueError):
            found = path.stat()
            there[found.st_dev, found.st_ino] = path  # the same file under any name
    for given in map(Path, inputs) if there else ():
        with contextlib.suppress(OSError, ValueError):
            found = given.stat()
            if (same := there.get((found.st_dev, found.st_ino))) is not None:
                raise OutputError(f"{shown(same)} is one of the inputs and would be overwritten; name {out}")
    if folders := [path for path in there.values() if path.is_dir()]:
        raise OutputError(f"{shown(folders[0])} is a folder where a file should be; name {out}, or move it")
    if foreign := [] if overwrite else [path for path in there.values() if not is_own(path)]:
        more = f" and {len(foreign) - 1} more" * (len(foreign) > 1)
        # Nothing near an exported model tells who wrote it.
        why = "there already" if "FILE" in out else "not written by densevl"
        verb = ("are" if more else "is") if "FILE" in out else ("were" if more else "was")
        raise OutputError(
            f"{shown(foreign[0])}{more} {verb} {why} and would be replaced; name {out}, or allow it with {allow}"
        )


class Hold:
    """A folder that only one run writes to at a time. `take` acquires it, and leaving the context releases it.

    The system releases it for a killed run. On file systems without locks, nothing is acquired.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = folder
        self._place: int | None = None

    def take(self) -> None:
        """Acquire the folder and create it if it is missing. Calling this again does nothing.

        Raises:
            OutputError: If another run holds the folder, or it cannot be created.
        """
        if self._place is not None:
            return
        require_folder(Path(self.folder, RUN_FILE))
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            self._place = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(self._place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"another run is writing to {shown(self.folder)}; wait for it, or name another --out"
                ) from error

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *error: object) -> None:
        if self._place is not None:
            os.close(self._place)
            self._place = None


def sweep(folder: Path) -> None:
    """Remove the unfinished files that a killed run left in a folder. The caller must hold the folder."""
    for part in folder.glob(PARTS):
        part.unlink(missing_ok=True)


def require_folder(path: str | os.PathLike[str]) -> None:
    """Create the folder of a file that a long computation will write, so that a bad path fails at the start.

    Raises:
        OutputError: If the folder cannot be created.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise unwritten(Path(path), error) from error


def is_own(path: Path) -> bool:
    """Return whether densevl wrote a file. The file itself, the JSON of the same stem, or the run file says so."""
    if path.suffix in _SIGNED and _SIGNATURE in _start(path):
        return True
    told = _start(path.with_suffix(".json")) if path.suffix != ".json" else b""
    if _SIGNATURE in told and _ALONE not in told:
        return True
    stems = [path.name.removesuffix(end) for end in _COMPANIONS if path.name.endswith(end)]
    if any(_SIGNATURE in _start(path.with_name(f"{stem}.json")) for stem in stems):
        return True
    return json.dumps(path.name).encode() in _start(path.with_name(RUN_FILE), None)


def _start(path: Path, size: int | None = 2**20) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError:
        return b""


def unique_stems(paths: Iterable[str | os.PathLike[str]], taken: Iterable[str] = ()) -> list[str]:
    """Name the outputs of many inputs that go into one folder.

    An input keeps its own stem if no other input has it. Stems that are equal on a case-insensitive file system get
    their folder in front, then their extension behind, then a hash of their path, then a number: `a/x.jpg` and
    `b/x.jpg` become `a_x` and `b_x`, and `x.jpg` and `x.png` in one folder become `x-jpg` and `x-png`. A name has at
    most 150 bytes, and no separator, leading dot or character that some system refuses. It never equals the overlay
    (`x_overlay`) or confidence picture of another. The same inputs in the same order get the same names.

    Args:
        paths: the inputs, which need not exist. taken: names already in use.

    Returns:
        One stem per input, in order, all different.
    """
    inputs = [Path(os.fspath(path)) for path in paths]
    names = [_safe_name(path.stem) for path in inputs]
    claimed = {_fold(claim) for name in taken for claim in _claims(name)}
    ways_out: tuple[Callable[[Path], str], ...] = (
        lambda path: _safe_name(f"{_safe_name(path.parent.name)}_{path.stem}"),
        lambda path: _safe_name(f"{path.stem}-{path.suffix.lstrip('.')}"),
        lambda path: f"{_safe_name(path.stem)}-{digest.of_text(path.as_posix())[:8]}",
    )
    for rename in ways_out:
        crowd = Counter(map(_fold, names))
        names = [
            name if crowd[_fold(name)] == 1 and _fold(name) not in claimed else rename(path)
            for name, path in zip(names, inputs, strict=True)
        ]
    for index, name in enumerate(names):
        number = 2
        while claimed & (claims := {_fold(claim) for claim in _claims(names[index])}):
            names[index] = f"{name}-{number}"
            number += 1
        claimed |= claims
    return names


def _claims(name: str) -> tuple[str, ...]:
    """Return the stems of all files that a result of this name has."""
    return (name, *(name + mark for mark in _MARKS))


def _safe_name(text: str) -> str:
    """Turn any text into a file name without forbidden characters that is not hidden, empty or too long."""
    text = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", text)).strip(" .")
    if not text:
        return "image"
    if text.split(".")[0].lower() in _DEVICES:
        text = f"{text}_"
    encoded = text.encode()
    if len(encoded) <= _STEM_BYTES:
        return text
    return f"{encoded[: _STEM_BYTES - 9].decode(errors='ignore')}-{digest.of_text(text)[:8]}"


def _fold(name: str) -> str:
    """Return the key that two names share if a case-insensitive file system considers them equal."""
    return unicodedata.normalize("NFC", name.casefold())
