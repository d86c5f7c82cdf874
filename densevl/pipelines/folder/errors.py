"""The list of bad images: each is appended at once, a kill leaves only whole rows, and the end puts them in order."""

from __future__ import annotations

import json
from collections.abc import Iterable

from densevl.pipelines.folder.storing import Store


class ErrorList:
    """A file of JSON lines, {"image": ..., "error": ...}. Attributes: rows: message by image."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self.rows, self._begun = dict[str, str](), False

    def begin(self) -> None:
        """Read the rows of an earlier run, dropping one that a kill cut off."""
        if not self._begun and self._store.exists(self._name):
            self.rows = _read(self._store.read(self._name))
            self._write(self.rows)
        self._begun = True

    def add(self, image: str, error: str) -> None:
        """Append a row, unless it is already there.

        Raises:
            OutputError: If the file cannot be written.
        """
        self.begin()
        if self.rows.get(image) != error:
            self.rows[image] = error
            self._store.append(self._name, _row(image, error).encode())

    def close(self, images: Iterable[str], errors: dict[str, str]) -> None:
        """Keep the rows of these errors, in the order of the images. Without errors, remove the file."""
        rows = {image: errors[image] for image in images if image in errors}
        if rows and self._begun:
            self._write(rows)
        elif not rows:
            self._store.remove([self._name])

    def _write(self, rows: dict[str, str]) -> None:
        self._store.renew(self._name, "".join(_row(image, error) for image, error in rows.items()).encode())


def _read(data: bytes) -> dict[str, str]:
    rows = {}
    for line in data.split(b"\n")[:-1]:
        try:
            row = json.loads(line)
            rows[row["image"]] = row["error"]
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def _row(image: str, error: str) -> str:
    return json.dumps({"image": image, "error": error}) + "\n"
