"""Whether a benchmark is ready: what is missing, what is wrong, and where it was looked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from densevl.errors import DatasetError, ImageError
from densevl.evaluation.benchmarks.base import TURNED, Dataset, Root
from densevl.evaluation.benchmarks.table import benchmark
from densevl.files import shown


@dataclass(frozen=True)
class Check:
    """What `check` found.

    Attributes:
        name: of the benchmark; root: where it was found, None where not; looked: every place looked at.
        images: found, those to learn from included; expected: of the published split, None where that varies.
        faults: a sentence for everything amiss; empty means ready. note: on the benchmark.
    """

    name: str
    root: Path | None
    looked: tuple[Path, ...]
    images: int = 0
    expected: int | None = None
    faults: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        lines = [f"{self.name}: {'ready' if not self.faults else 'not ready'}, {self.images} images at {self.root}"]
        if self.root is None:
            lines = [f"{self.name}: not found"]
        lines += [f"  {fault}" for fault in self.faults]
        if self.root is None:
            lines += [f"  looked in {path}" for path in self.looked]
        return "\n".join([*lines, *([f"  note: {self.note}"] if self.note else [])])


def check(name: str, root: Root = None, *, task: str | None = None, read: int = 8) -> Check:
    """Say whether a benchmark is ready, what is missing, and where it was looked for.

    Args:
        name, root, task: as `open_dataset` takes them. read: so many images, spread over it, are read whole.

    Raises:
        DatasetError: no benchmark of that name, or not for that task.
    """
    chosen = benchmark(name, task)
    place, looked = chosen.find(root)
    if place is None:
        faults: list[str] = [f"expected: {'; '.join(chosen.files)}"]
        return Check(name, None, tuple(looked), 0, chosen.expected, tuple(faults), chosen.note)
    try:
        dataset = chosen.open(root)
    except (DatasetError, ImageError, OSError, KeyError, ValueError) as error:
        faults = [str(error) or type(error).__name__]
        return Check(name, place, tuple(looked), 0, chosen.expected, tuple(faults), chosen.note)
    faults = list(dataset.warnings)
    if chosen.expected is not None and len(dataset) != chosen.expected:
        faults.append(f"{len(dataset)} images, the published split has {chosen.expected}")
    absent = _absent("image", (item.image for item in dataset.listed))
    absent += _absent("label", (item.label for item in dataset.listed if item.label is not None))
    faults += absent or _unreadable(dataset, read)
    return Check(name, place, tuple(looked), len(dataset.listed), chosen.expected, tuple(faults), chosen.note)


def _absent(kind: str, paths: Iterable[Path]) -> list[str]:
    unique = list(dict.fromkeys(paths))
    absent = [path for path in unique if not path.exists()]
    if not absent:
        return []
    return [f"{len(absent)} of {len(unique)} {kind} files are missing, the first is {shown(absent[0])}"]


def _unreadable(dataset: Dataset, read: int) -> list[str]:
    """The first fault among images spread over the dataset."""
    for item in dataset.listed[:: max(1, len(dataset.listed) // max(1, read))]:
        try:
            if dataset.read(item).turned:
                return [f"the image '{item.key}' is turned by its EXIF tag: {TURNED}"]
        except (DatasetError, ImageError) as error:
            return [str(error)]
    return []
