"""The list of bad images: a row the moment one is met, whole after any kill, in the order of the images at the end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from densevl.errors import OutputError
from densevl.files import renew, shown


class ErrorList:
    """A file of JSON lines, {"image": ..., "error": ...}. Attributes: path; rows: message by image."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows, self._begun = path, dict[str, str](), False

    def begin(self) -> None:
        """Read what an earlier run left; a row that a kill cut goes."""
        if not self._begun and self.path.exists():
            self.rows = _read(self.path)
            self._write(self.rows)
        self._begun = True

    def add(self, image: str, error: str) -> None:
        """Append a row, unless it is there.

        Raises:
            OutputError: the disk refuses.
        """
        self.begin()
        if self.rows.get(image) == error:
            return
        self.rows[image] = error
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_row(image, error))
        except OSError as reason:
            raise OutputError(f"cannot write {shown(self.path)}: {reason.strerror}") from reason

    def close(self, images: Iterable[str], errors: dict[str, str]) -> None:
        """Leave the rows of these errors, in the order of the images; no file if there are none."""
        rows = {image: errors[image] for image in images if image in errors}
        if rows and self._begun:
            self._write(rows)
        elif not rows:
            self.path.unlink(missing_ok=True)

    def _write(self, rows: dict[str, str]) -> None:
        renew(self.path, "".join(_row(image, error) for image, error in rows.items()).encode())


def _read(path: Path) -> dict[str, str]:
    rows = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            row = json.loads(line)
            rows[row["image"]] = row["error"]
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def _row(image: str, error: str) -> str:
    return json.dumps({"image": image, "error": error}) + "\n"
