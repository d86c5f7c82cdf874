"""The saved state of a run: its counts and what it kept, in files that a later run adds up.

Every process writes files of its own, complete or not at all. Counts are integers, so the order of addition does not
matter. What cannot be added up, such as the detections of every image, lies in shard files beside them. A shard holds
the images between two saves and is written before the counts that mark them as done. A run killed in between leaves a
shard whose images are not counted: they are done again, and the stray lines are ignored.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl import fitted
from densevl.errors import EvaluationError
from densevl.evaluation import distributed
from densevl.files import atomic_write, json_text, shown, sweep
from densevl.saved import Kind, parse_json, read_arrays, read_bytes

STATE = "state"
SHARD = ".jsonl"
Identity = Mapping[str, Any]
"""Everything that decides the counts except the images, as JSON."""
AllCounts = dict[str, npt.NDArray[np.int64]]
SAVED = Kind("saved state", EvaluationError, "remove it to start again")
_ARRAYS = {"files": "u8", "done": "b1", "ranking": "f8"}


@dataclass(eq=False)
class State:
    """Counts of a run.

    Attributes:
        identity: of the experiment. files: uint64 (N,), see `Dataset.digests`.
        done: bool (N,), which images are counted.
        ranking: float64 (N,), each image's own score; 0 where not done. counts: int64 arrays by measure.
    """

    identity: Identity
    files: npt.NDArray[np.uint64]
    done: npt.NDArray[np.bool_]
    ranking: npt.NDArray[np.float64]
    counts: AllCounts

    @classmethod
    def empty(cls, identity: Identity, files: npt.NDArray[np.uint64], counts: AllCounts) -> State:
        """A state with no image counted."""
        return cls(identity, files, np.zeros(len(files), bool), np.zeros(len(files)), dict(counts))

    def add(self, index: int, counts: AllCounts, ranking: float) -> None:
        """Count an image."""
        self.done[index], self.ranking[index] = True, ranking
        for name, array in counts.items():
            self.counts[name] = self.counts[name] + array

    def merge(self, other: State) -> None:
        """Add another process's counts.

        Raises:
            EvaluationError: an image is counted twice.
        """
        if (self.done & other.done).any():
            raise EvaluationError("the saved state counts an image twice; remove its 'state' folder")
        self.done = self.done | other.done
        self.ranking = np.where(other.done, other.ranking, self.ranking)
        for name, array in other.counts.items():
            self.counts[name] = self.counts[name] + array

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtypes and shapes of its arrays, equal for all states of an experiment."""
        arrays = {"files": self.files, "done": self.done, "ranking": self.ranking, **self.counts}
        return {name: (array.dtype.str, array.shape) for name, array in sorted(arrays.items())}

    def save(self, path: Path) -> None:
        """Write it, complete or not at all."""
        buffer = io.BytesIO()
        arrays = {f"count/{name}": array for name, array in self.counts.items()}
        identity = np.array(json_text(self.identity, default=str))
        np.savez(buffer, identity=identity, files=self.files, done=self.done, ranking=self.ranking, **arrays)  # type: ignore[arg-type]
        atomic_write(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> State:
        """Read a saved state.

        Raises:
            EvaluationError: the file is damaged.
        """
        arrays = read_arrays(path, SAVED)
        with SAVED.sense(path):
            counts = {name.removeprefix("count/"): arrays[name] for name in arrays if name.startswith("count/")}
            identity = parse_json(str(arrays["identity"]))
            found = cls(identity, arrays["files"], arrays["done"], arrays["ranking"], counts)
            if not isinstance(identity, dict) or any(arrays[name].dtype.str[1:] != _ARRAYS[name] for name in _ARRAYS):
                raise ValueError("its parts are of other kinds")
            if any(array.shape != (len(found.files),) for array in (found.files, found.done, found.ranking)):
                raise ValueError("its parts have different lengths")
            if any(array.dtype != np.int64 or (array < 0).any() for array in counts.values()):
                raise ValueError("a count is not an integer of 0 or more")
        return found


class Checkpoint:
    """The state of a run, in a folder that earlier runs may have written to, or in memory alone.

    Attributes:
        before: counts of earlier runs. now: counts of this process.
    """

    def __init__(
        self,
        folder: Path | None,
        identity: Identity,
        keys: Sequence[str],
        files: npt.NDArray[np.uint64],
        zeros: AllCounts,
    ) -> None:
        """Read what earlier runs saved, and wait until all processes have.

        Args:
            folder: gets a file for each process and run; None keeps nothing. keys: of the images.

        Raises:
            EvaluationError: a file is damaged, or belongs to another experiment; the message says what differs.
        """
        self.before, self.now = State.empty(identity, files, zeros), State.empty(identity, files, zeros)
        for path in sorted(folder.glob("*.npz")) if folder is not None else ():
            part = State.load(path)
            if not fitted.differing(part.identity, identity) and part.shapes() != self.before.shapes():
                raise EvaluationError(f"{shown(path)} is damaged; remove it to start again")
            if told := _other(part, self.before, keys):
                raise EvaluationError(
                    f"{shown(path.parent)} holds counts of another experiment: {told}; "
                    "give another work folder (--out), or forget them (--fresh)"
                )
            self.before.merge(part)
        if folder is not None and distributed.rank() == 0:
            sweep(folder)  # this run's files have other names, so a killed run's would otherwise stay
        self.path = folder / _file_name(folder) if folder is not None else None
        self._lines: list[str] = []
        self._shards = 0
        distributed.barrier()  # no process writes before all have read and named their file

    def add(self, index: int, counts: AllCounts, ranking: float, kept: Any = None) -> None:
        """Count an image, and keep `kept`, anything that JSON can hold."""
        self.now.add(index, counts, ranking)
        if kept is not None:
            self._lines.append(json_text([index, kept]) + "\n")

    def so_far(self) -> AllCounts:
        """Counts of earlier runs plus this process."""
        return {name: array + self.now.counts[name] for name, array in self.before.counts.items()}

    def save(self) -> None:
        """Write what is new since the last call, shards first: counts must not name an image whose shard is missing."""
        if self.path is None or not self.now.done.any():
            return
        if self._lines:
            atomic_write(self.path.with_suffix(f".{self._shards:05d}{SHARD}"), "".join(self._lines).encode())
            self._shards, self._lines = self._shards + 1, []
        self.now.save(self.path)

    def total(self) -> tuple[State, int]:
        """The sum over all processes and earlier runs, and how many images all processes did, after all have saved."""
        now = self.now
        counts = {name: distributed.summed(array) for name, array in now.counts.items()}
        total = State(now.identity, now.files, distributed.summed(now.done), distributed.summed(now.ranking), counts)
        images = int(total.done.sum())
        total.merge(self.before)
        distributed.barrier()
        return total, images

    def kept(self) -> dict[int, Any]:
        """Everything kept by all processes and earlier runs of the folder, by image.

        Raises:
            EvaluationError: a shard is damaged or missing.
        """
        if self.path is None:
            return dict(sorted((json.loads(line) for line in self._lines), key=lambda pair: pair[0]))
        found: dict[int, Any] = {}
        for path in sorted(self.path.parent.glob("*.npz")):
            done = State.load(path).done
            for shard in sorted(path.parent.glob(f"{path.stem}.*{SHARD}")):
                found |= {index: content for index, content in _read(shard) if done[index]}
            if not found.keys() >= set(np.flatnonzero(done).tolist()):
                raise EvaluationError(f"{shown(path)} has lost its shards; remove the 'state' folder to start again")
        return dict(sorted(found.items()))


def saved(folder: Path) -> list[Path]:
    """The files of earlier runs in a folder, and no others."""
    return sorted(path for path in folder.glob("*") if re.fullmatch(r"\d{4}-\d{4}(\.npz|\.\d{5}\.jsonl)", path.name))


def _other(old: State, new: State, keys: Sequence[str]) -> str:
    """What makes an old state differ from a new one, "" if nothing does."""
    if differing := fitted.differing(old.identity, new.identity):
        return differing
    changed = np.flatnonzero(old.done & (old.files != new.files))
    if not changed.size:
        return ""
    return f"{changed.size} of the images counted, or their labels, have changed, '{keys[changed[0]]}' first"


def _file_name(folder: Path) -> str:
    """A name that no earlier run has: the run's number and the rank."""
    runs = {int(path.name.split("-")[0]) for path in folder.glob("*-*.npz")} if folder.exists() else set()
    return f"{max(runs, default=0) + 1:04d}-{distributed.rank():04d}.npz"


def _read(path: Path) -> list[tuple[int, Any]]:
    data = read_bytes(path, SAVED)
    with SAVED.sense(path):
        return [(int(index), content) for index, content in map(parse_json, data.splitlines())]
