"""Whether a benchmark is ready: what is missing, what is wrong, and where it was looked for; for every kind of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densevl.errors import DatasetError, ImageError, suggest
from densevl.evaluation.benchmarks import anomaly as anomaly_sets
from densevl.evaluation.benchmarks.coco import find_regions, open_regions
from densevl.evaluation.benchmarks.datasets import find, names, open_dataset, places
from densevl.evaluation.benchmarks.region_specs import REGION_SPECS
from densevl.evaluation.benchmarks.semantic import SPECS
from densevl.evaluation.tasks import SEMANTIC, TASKS
from densevl.files import shown
from densevl.images import read_image

Root = str | os.PathLike[str] | None


@dataclass(frozen=True)
class Check:
    """What `check` found.

    Attributes:
        name: of the benchmark; root: where it was found, None where not; looked: every place looked at.
        images: pairs found; expected: pairs of the published split, None where that varies.
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


def known() -> dict[str, tuple[str, ...]]:
    """Every benchmark there is a reader for, with its tasks; "anomaly" is one of them."""
    tasks: dict[str, list[str]] = {name: [SEMANTIC] for name in names()}
    for name, task in REGION_SPECS:
        tasks.setdefault(name, []).append(task)
    return {name: tuple(own) for name, own in tasks.items()} | dict.fromkeys(anomaly_sets.names(), ("anomaly",))


def files_of(name: str, task: str) -> list[str]:
    """The files that a benchmark is expected to have, as lines to read."""
    if task == "anomaly":
        return [anomaly_sets.layout(name)]
    if task == SEMANTIC:
        return SPECS[name].layout.expected(Path())
    return REGION_SPECS[name, task].expected_files()


def expected_images(name: str, task: str) -> int | None:
    """How many images the published split has, None where that varies."""
    if task == "anomaly":
        return None
    return SPECS[name].expected if task == SEMANTIC else REGION_SPECS[name, task].expected


def check(name: str, root: Root = None, *, task: str | None = None, read: int = 8) -> Check:
    """Say whether a benchmark is ready, what is missing, and where it was looked for.

    Args:
        name: of `known`; root: its folder; None looks in $DENSEVL_DATA, ./data and the cache folder.
        task: "semantic", "instance" or "panoptic", where a benchmark has several; None is the first it has.
        read: so many pairs, spread over the dataset, are read whole.

    Raises:
        DatasetError: no benchmark of that name, or not for that task.
    """
    there = known()
    if name not in there:
        raise DatasetError(f"no dataset '{name}'{suggest(name, there)}; there are {', '.join(there)}")
    task = task or there[name][0]
    if task not in there[name]:
        raise DatasetError(f"'{name}' is no dataset for task {task}{suggest(task, TASKS)}; {', '.join(there[name])}")
    if task == "anomaly":
        return _anomaly(name, root, read)
    if task == SEMANTIC:
        spec = SPECS[name]
        place, looked = find(spec, root)
        layout, expected, note = spec.layout.expected(Path("ROOT")), spec.expected, spec.note
        open_it: Callable[[], Any] = lambda: open_dataset(name, place)  # noqa: E731
    else:
        own = REGION_SPECS[name, task]
        place, looked = find_regions(own, root)
        layout, expected, note = own.expected_files(), own.expected, own.note
        open_it = lambda: open_regions(name, task, place)  # noqa: E731
    if place is None:
        return Check(name, None, tuple(looked), 0, expected, (f"expected: {'; '.join(layout)}",), note)
    try:
        dataset = open_it()
    except (DatasetError, OSError, KeyError, ValueError) as error:
        return Check(name, place, tuple(looked), 0, expected, (str(error),), note)
    faults = []
    if expected is not None and len(dataset) != expected:
        faults.append(f"{len(dataset)} images, the published split has {expected}")
    faults += _absent("image", (item.image for item in dataset.items))
    faults += _absent("label", (item.label for item in dataset.items))
    if not any("missing" in fault for fault in faults):
        faults += _unreadable(len(dataset), dataset.__getitem__, read)
    return Check(name, place, tuple(looked), len(dataset), expected, tuple(faults), note)


def _anomaly(name: str, root: Root, read: int) -> Check:
    looked = places(name, root)
    place = next((path for path in looked if path.is_dir()), None)
    if place is None:
        return Check(name, None, tuple(looked), faults=(f"expected: {anomaly_sets.layout(name)}",))
    try:
        found = anomaly_sets.open_anomaly(name, place)
    except (DatasetError, ImageError, OSError, KeyError, ValueError) as error:
        return Check(name, place, tuple(looked), faults=(str(error) or type(error).__name__,))
    items = (*found.train, *found.test)
    faults = _absent("image", (item.image for item in items))
    faults += _absent("mask", (item.mask for item in items if item.mask is not None))

    def look(index: int) -> None:
        image = read_image(items[index].image)
        items[index].read_mask((image.shape[0], image.shape[1]))

    if not faults:
        faults = _unreadable(len(items), look, read)
    return Check(name, place, tuple(looked), len(items), None, tuple(faults), found.note)


def _absent(kind: str, paths: Iterable[Path]) -> list[str]:
    unique: Sequence[Path] = list(dict.fromkeys(paths))
    absent = [path for path in unique if not path.exists()]
    if not absent:
        return []
    return [f"{len(absent)} of {len(unique)} {kind} files are missing, the first is {shown(absent[0])}"]


def _unreadable(count: int, look: Callable[[int], Any], read: int) -> list[str]:
    """The first fault among pairs spread over the dataset."""
    for index in range(0, count, max(1, count // max(1, read))):
        try:
            look(index)
        except (DatasetError, ImageError) as error:
            return [str(error)]
    return []
