"""Counts of a run on disk, so that a killed run goes on where it was.

Every process writes a file of its own, whole or not at all; a later run adds up all files it finds and does what is not
yet done. Counts are integers, so the order in which they are added does not matter.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densevl.errors import EvaluationError
from densevl.files import atomic_write, shown


@dataclass(eq=False)
class State:
    """Attributes:
    fingerprint: of the experiment; done: bool (N,), which images are counted.
    ranking: float64 (N,), the score of each image by itself; 0 where not done.
    counts: int64 arrays by measure.
    """

    fingerprint: str
    done: npt.NDArray[np.bool_]
    ranking: npt.NDArray[np.float64]
    counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    @classmethod
    def empty(cls, fingerprint: str, images: int, counts: dict[str, npt.NDArray[np.int64]]) -> State:
        """Nothing done yet; counts of no image."""
        return cls(fingerprint, np.zeros(images, bool), np.zeros(images), counts)

    def add(self, index: int, counts: dict[str, npt.NDArray[np.int64]], ranking: float) -> None:
        """Count an image."""
        self.done[index], self.ranking[index] = True, ranking
        for name, array in counts.items():
            self.counts[name] += array

    def merge(self, other: State) -> None:
        """Add what another process counted.

        Raises:
            EvaluationError: another experiment, or an image counted twice.
        """
        if other.fingerprint != self.fingerprint:
            raise EvaluationError("the saved state belongs to another experiment; name a new work folder")
        if (self.done & other.done).any():
            raise EvaluationError("the saved state counts an image twice; remove its 'state' folder")
        self.done |= other.done
        self.ranking = np.where(other.done, other.ranking, self.ranking)
        for name, array in other.counts.items():
            self.counts[name] = self.counts[name] + array if name in self.counts else array.copy()

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        buffer = io.BytesIO()
        arrays = {f"count/{name}": array for name, array in self.counts.items()}
        np.savez(buffer, done=self.done, ranking=self.ranking, fingerprint=np.array(self.fingerprint), **arrays)  # type: ignore[arg-type]
        atomic_write(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> State:
        """Read it back.

        Raises:
            EvaluationError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                counts = {name.removeprefix("count/"): file[name] for name in file.files if name.startswith("count/")}
                return cls(str(file["fingerprint"]), file["done"], file["ranking"], counts)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise EvaluationError(f"{shown(path)} is no saved state ({error}); remove it to start anew") from error
