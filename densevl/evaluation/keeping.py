"""What cannot be added up, such as the detections of every image, kept in shard files beside the counts.

A shard holds the images between two savings and is written before the counts that say they are done. A run killed in
between leaves a shard whose images its counts do not have: they are done again, and the stray lines are not read. So
what is read back is exactly what was counted, and memory does not grow with the dataset.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from densevl.errors import EvaluationError
from densevl.evaluation.checkpoint import State
from densevl.files import atomic_write, shown

ENDING = ".jsonl"


class Keeper:
    """Keeps something of each image: in shards named after a state file, or in memory where there is none."""

    def __init__(self, path: Path | None) -> None:
        """Args: path: of this process's state file, DIR/0001-0000.npz; its shards are DIR/0001-0000.00000.jsonl."""
        self.path, self.shards = path, 0
        self._lines: list[str] = []

    def add(self, index: int, content: Any) -> None:
        """Keep what belongs to an image: anything that JSON holds; None is kept nowhere."""
        if content is not None:
            self._lines.append(json.dumps([index, content]) + "\n")

    def save(self) -> None:
        """Write what came since the last call; to be called before the counts are saved."""
        if self.path is not None and self._lines:
            atomic_write(self.path.with_suffix(f".{self.shards:05d}{ENDING}"), "".join(self._lines).encode())
            self.shards += 1
            self._lines = []

    def collect(self) -> dict[int, Any]:
        """Everything kept by all processes and earlier runs of the folder, by image.

        Raises:
            EvaluationError: a shard is damaged or missing.
        """
        if self.path is None:
            return dict(sorted(json.loads(line) for line in self._lines))
        found: dict[int, Any] = {}
        for path in sorted(self.path.parent.glob("*.npz")):
            done = State.load(path).done
            for shard in sorted(path.parent.glob(f"{path.stem}.*{ENDING}")):
                found |= {index: content for index, content in _read(shard) if done[index]}
        return dict(sorted(found.items()))


def _read(path: Path) -> list[tuple[int, Any]]:
    try:
        return [(int(index), content) for index, content in map(json.loads, path.read_text("utf-8").splitlines())]
    except (OSError, ValueError, TypeError) as error:
        raise EvaluationError(f"{shown(path)} is damaged ({error}); remove the 'state' folder to start anew") from error
