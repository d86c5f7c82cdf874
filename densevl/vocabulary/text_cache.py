"""A disk cache of text embeddings: one small SQLite file, safe for several processes, no pickles.

A broken or unwritable cache costs time, never a result: it is reported once and then bypassed. One that has grown too
large, as on a server whose clients keep sending new words, is replaced by a new one. Each vector is stored with a
checksum of itself and its text; one that does not match is encoded again.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from densevl import digest
from densevl.cache import cache_dir

_SCHEMA = "CREATE TABLE IF NOT EXISTS embedding (key TEXT PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"
_BUSY_SECONDS = 10.0
_SUM = 16  # bytes of a checksum
MOST = 500_000_000  # bytes of the file
_CHUNK = 500  # SQLite's default limit of variables in a statement is 999


def _summed(key: str, vector: bytes) -> bytes:
    """A vector in stored form, followed by its checksum."""
    return vector + bytes.fromhex(digest.of_bytes(key.encode() + vector))[:_SUM]


class TextCache:
    """Embeddings by (model fingerprint, templates, text); vectors are float32."""

    def __init__(self, fingerprint: str, templates: Sequence[str], path: Path | None = None) -> None:
        """Open lazily; `path` defaults to text.sqlite in the cache folder."""
        self._scope = digest.of_text(fingerprint, *templates)
        self._path = path
        self._broken = False

    def _key(self, text: str) -> str:
        return digest.of_text(self._scope, text)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path or cache_dir() / "text.sqlite", timeout=_BUSY_SECONDS)
        connection.execute(_SCHEMA)
        return connection

    def get(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The cached vectors of these texts, each (D,) float32."""
        if self._broken or not texts:
            return {}
        keys = {self._key(text): text for text in texts}
        found: dict[str, np.ndarray] = {}
        try:
            with closing(self._connect()) as connection:
                asked = list(keys)
                for start in range(0, len(asked), _CHUNK):
                    part = asked[start : start + _CHUNK]
                    marks = ",".join("?" * len(part))
                    query = f"SELECT key, vector FROM embedding WHERE key IN ({marks})"  # noqa: S608 - only "?" marks
                    rows = connection.execute(query, part)
                    sound = ((key, stored[:-_SUM]) for key, stored in rows if stored == _summed(key, stored[:-_SUM]))
                    found.update({keys[key]: np.frombuffer(vector, dtype="<f4").copy() for key, vector in sound})
        except (sqlite3.Error, OSError, TypeError, ValueError) as error:
            self._give_up(error)
        return found

    def put(self, vectors: Mapping[str, np.ndarray]) -> None:
        """Store vectors (D,) by text, in one transaction."""
        if self._broken or not vectors:
            return
        content = {self._key(text): np.ascontiguousarray(row, dtype="<f4").tobytes() for text, row in vectors.items()}
        rows = [(key, _summed(key, vector)) for key, vector in content.items()]
        try:
            with closing(self._connect()) as connection, connection:
                if self._size(connection) + sum(len(vector) for _, vector in rows) > MOST:
                    connection.execute("DELETE FROM embedding")
                connection.executemany("INSERT OR REPLACE INTO embedding VALUES (?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    @staticmethod
    def _size(connection: sqlite3.Connection) -> int:
        """Bytes of the file that are in use."""
        counts = [
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        ]
        return (counts[0] - counts[1]) * counts[2]

    def _give_up(self, error: Exception) -> None:
        self._broken = True
        logging.getLogger(__name__).warning("text cache unusable (%s); texts are encoded again", error)
