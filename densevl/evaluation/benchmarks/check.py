"""Whether a benchmark is ready: what is missing or wrong, and where it was searched for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densevl.errors import DatasetError, ImageError
from densevl.evaluation.benchmarks.base import Root, evenly
from densevl.evaluation.benchmarks.look import Look, look
from densevl.evaluation.benchmarks.table import benchmark


@dataclass(frozen=True)
class Check:
    """The result of `check`.

    Attributes:
        name: of the benchmark; root: where it was found, None if not; looked: every place searched.
        images: number found, including those to learn from; expected: of the published split, None where that varies.
        faults: a sentence per problem; empty means ready. note: on the benchmark. warnings: oddities.
    """

    name: str
    root: Path | None
    looked: tuple[Path, ...]
    images: int = 0
    expected: int | None = None
    faults: tuple[str, ...] = ()
    note: str = ""
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.name}: {'ready' if not self.faults else 'not ready'}, {self.images} images at {self.root}"]
        if self.root is None:
            lines = [f"{self.name}: not found"]
        lines += [f"  {fault}" for fault in self.faults]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        if self.root is None:
            lines += [f"  looked in {path}" for path in self.looked]
        return "\n".join([*lines, *([f"  note: {self.note}"] if self.note else [])])


def check(
    name: str, root: Root = None, *, task: str | None = None, rules: Mapping[str, Any] | None = None, read: int = 8
) -> Check:
    """Say whether a benchmark is ready, what is missing, and where it was searched for.

    Args:
        name, root, task, rules: as `open_dataset` takes them. read: how many images, spread over it, are read in full.

    Raises:
        DatasetError: there is no benchmark of that name or task, or rules do not apply to it.
    """
    chosen = benchmark(name, task)
    chosen.require(rules or ())
    place, looked = chosen.find(root)
    if place is None:
        faults: list[str] = [f"expected: {'; '.join(chosen.files)}"]
        return Check(name, None, tuple(looked), 0, chosen.expected, tuple(faults), chosen.note)
    try:
        dataset = chosen.open(root, rules=rules)
    except (DatasetError, ImageError, OSError, KeyError, ValueError) as error:
        faults = [str(error) or type(error).__name__]
        return Check(name, place, tuple(looked), 0, chosen.expected, tuple(faults), chosen.note)
    faults = []
    if chosen.expected is not None and len(dataset) != chosen.expected:
        faults.append(f"{len(dataset)} images, the published split has {chosen.expected}")
    seen = Look("")
    try:
        seen = look(dataset)
        for item in evenly(dataset.listed, min(read, len(dataset.listed))):
            dataset.read(item)
    except (DatasetError, ImageError) as error:
        faults.append(str(error))
    odd = (*seen.warnings, *seen.of_sample)
    return Check(name, place, tuple(looked), len(dataset.listed), chosen.expected, tuple(faults), chosen.note, odd)
