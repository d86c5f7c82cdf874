"""Saved counts by candidate and picture: each is counted once, and a killed run resumes from them."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densevl.errors import EvaluationError
from densevl.files import atomic_write, json_text, shown
from densevl.saved import Kind, parse_json, read_arrays
from densevl.tuning.candidates import Candidate
from densevl.tuning.scores import Counts

SAVED = Kind("saved state", EvaluationError, "remove it, or start again with --fresh")
SAVE_EVERY = 10.0
"""Seconds between two saves."""
Cells = Mapping[Candidate, tuple[Counts, float]]
Count = Callable[[int, Sequence[Candidate]], Cells]
Show = Callable[[int, int], None]
"""Called with the number of cells counted, and the number wanted at this point."""


class Ledger:
    """Counts by candidate and picture, computed on first use.

    Attributes: spent: whether the time is up, so that only what must be counted still is.
    """

    def __init__(
        self,
        count: Count,
        size: tuple[int, int],
        *,
        path: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        budget: float | None = None,
        show: Show | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start, or resume from a file.

        Args:
            count: counts candidates on a picture, by its number. size: number of pictures, and classes of counts.
            path: of the file; None keeps nothing. identity: what decides the counts. budget: seconds from now.

        Raises:
            EvaluationError: the file is damaged, or belongs to something else.
        """
        self._count, self._show, self._clock = count, show, clock
        self.pictures, self._classes = size
        self._path, self._identity = path, dict(identity or {})
        self._cells: dict[Candidate, dict[int, tuple[Counts, float]]] = {}
        self._until = None if budget is None else clock() + budget
        self._saved, self._fresh = clock(), False
        self.resumed = 0
        if path is not None and path.exists():
            self._load(path)

    @property
    def spent(self) -> bool:
        """Whether the time is up."""
        return self._until is not None and self._clock() >= self._until

    def ensure(self, candidates: Iterable[Candidate], pictures: Sequence[int], *, must: bool = False) -> None:
        """Count what is missing, picture by picture, until the time is up; with `must` in any case."""
        wanted = list(candidates)
        done, total = sum(self.has(own, [at]) for own in wanted for at in pictures), len(wanted) * len(pictures)
        for at in pictures:
            missing = [own for own in wanted if not self.has(own, [at])]
            if not missing:
                continue
            if self.spent and not must:
                return
            for own, cell in self._count(at, missing).items():
                self._cells.setdefault(own, {})[at] = cell
            done, self._fresh = done + len(missing), True
            if self._show is not None:
                self._show(done, total)
            if self._clock() - self._saved >= SAVE_EVERY:
                self.save()

    def has(self, candidate: Candidate, pictures: Iterable[int]) -> bool:
        """Whether a candidate is counted on all of some pictures."""
        return self._cells.get(candidate, {}).keys() >= set(pictures)

    def counts(self, candidate: Candidate, pictures: Sequence[int]) -> Counts:
        """Counts (N, 3, C) of a candidate on counted pictures."""
        return np.stack([self._cells[candidate][at][0] for at in pictures])

    def seconds(self, candidate: Candidate) -> float:
        """The candidate's seconds per picture: the median of those counted."""
        return float(np.median([seconds for _, seconds in self._cells[candidate].values()]))

    @property
    def known(self) -> list[Candidate]:
        """All candidates that were counted on any picture."""
        return list(self._cells)

    def save(self) -> None:
        """Write the counts, complete or not at all."""
        self._saved = self._clock()
        if self._path is None or not self._fresh:
            return
        keys = self.known
        shape = len(keys), self.pictures
        counts, seconds = np.zeros((*shape, 3, self._classes), np.int64), np.full(shape, np.nan)
        for row, own in enumerate(keys):
            for at, (cell, taken) in self._cells[own].items():
                counts[row, at], seconds[row, at] = cell, taken
        told = {"identity": self._identity, "candidates": [dict(own.settings) for own in keys]}
        buffer = io.BytesIO()
        np.savez(buffer, told=np.array(json_text(told, default=str)), counts=counts, seconds=seconds)
        atomic_write(self._path, buffer.getvalue())
        self._fresh = False

    def _load(self, path: Path) -> None:
        arrays = read_arrays(path, SAVED)
        with SAVED.sense(path):
            content = parse_json(str(arrays["told"]))
            keys = [Candidate.of(own) for own in content["candidates"]]
            counts, seconds, identity = arrays["counts"], arrays["seconds"], content["identity"]
        asked = json.loads(json_text(self._identity, default=str))
        if differing := [name for name in {**identity, **asked} if identity.get(name) != asked.get(name)]:
            raise EvaluationError(
                f"{shown(path.parent)} holds counts of something else ({', '.join(differing)}): name another --out, or "
                "start over with --fresh"
            )
        with SAVED.sense(path):
            if counts.shape != (len(keys), self.pictures, 3, self._classes) or seconds.shape != counts.shape[:2]:
                raise ValueError("its parts are of other sizes")
            if counts.dtype != np.int64 or (counts < 0).any():
                raise ValueError("a count is not an integer of 0 or more")
            for own, cells, taken in zip(keys, counts, seconds, strict=True):
                there = np.flatnonzero(~np.isnan(taken)).tolist()
                self._cells[own] = {at: (cells[at], float(taken[at])) for at in there}
                self.resumed += len(there)
