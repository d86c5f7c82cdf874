"""The one table of benchmarks, by name and task."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from densevl.errors import DatasetError, suggest
from densevl.evaluation.benchmarks import anomaly, coco, semantic
from densevl.evaluation.benchmarks.base import TASKS, Benchmark, Dataset, Root
from densevl.files import shown

_ALL = (*semantic.BENCHMARKS, *coco.BENCHMARKS, *anomaly.BENCHMARKS)
_NAMES = tuple(dict.fromkeys(entry.name for entry in _ALL))
BENCHMARKS: Mapping[tuple[str, str], Benchmark] = {
    (entry.name, entry.task): entry for name in _NAMES for entry in _ALL if entry.name == name
}


def tasks_of(name: str) -> tuple[str, ...]:
    """The tasks for which a benchmark has truth.

    Raises:
        DatasetError: there is no such benchmark.
    """
    if name not in _NAMES:
        require_no_folder(name)
        raise DatasetError(f"no dataset {shown(name)}{suggest(name, _NAMES)}; there are {', '.join(_NAMES)}")
    return tuple(task for own, task in BENCHMARKS if own == name)


def require_no_folder(name: str) -> None:
    """Refuse a folder where the name of a benchmark or a config belongs.

    Raises:
        DatasetError: it is one.
    """
    if os.path.isdir(name):
        plain = name if re.fullmatch(r"[\w./-]+", name) else shown(name)
        raise DatasetError(
            f"{shown(name)} is a folder, not a benchmark or a config; for images and labels of your own: densevl eval "
            f"run folder --root {plain}"
        )


def benchmark(name: str, task: str | None = None) -> Benchmark:
    """The benchmark of that name and task; None is the first task it has.

    Raises:
        DatasetError: there is none, or it has no such task.
    """
    own = tasks_of(name)
    if task is not None and task not in own:
        raise DatasetError(f"'{name}' is not a dataset for task {task}{suggest(task, TASKS)}; {', '.join(own)}")
    return BENCHMARKS[name, task or own[0]]


def open_dataset(
    name: str,
    root: Root = None,
    *,
    task: str | None = None,
    variant: str = "",
    rules: Mapping[str, Any] | None = None,
) -> Dataset:
    """Find a benchmark on disk.

    Args:
        name: of `BENCHMARKS`; "folder" is any folder with images/ and labels/ and a list of classes, or
            instances.json, or panoptic.json and panoptic/; "mvtec" is any folder in that layout.
        root: its folder; None looks in $DENSEVL_DATA, ./data and the cache folder.
        task: "semantic", "instance", "panoptic" or "anomaly"; None is the first it has.
        variant: another label rule: "mmseg-default255" (ade847, pc459), "keep-ignore" (coco-object).
        rules: for a "folder" with label maps, the meaning of stored numbers: keys "ignore", "label_map",
            "reduce_zero_label" and "exif", which override those of its dataset.json (see `benchmarks.own`). "exif"
            applies to all label maps.

    Raises:
        DatasetError: it is unknown, not found, or empty; the message lists the expected files.
    """
    return benchmark(name, task).open(root, variant, rules)
