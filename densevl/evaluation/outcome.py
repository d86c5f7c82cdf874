"""`Outcome`: the counts of an evaluation, and the figures they give."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl import __version__, digest
from densevl.evaluation.checkpoint import Identity
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.tasks.base import Counts, Task

_PACKAGES = ("torch", "open_clip_torch", "timm", "numpy", "pillow")


@dataclass(frozen=True, eq=False)
class Outcome:
    """The counts of an evaluation.

    Attributes:
        task: the task. identity, files: what decides the counts; see `identity_of` and `Dataset.digests`.
        counts: by measure. ranking: each image's own score.
        seconds: wall time of this run; parts: its parts: waiting to read, model, deciding and counting.
        images: number of images in this run, in all processes; resumed: number done by earlier runs.
        used: `facts` of the predictor.
        kept: what was kept of each image, in the first process; empty in others.
    """

    task: Task
    identity: Identity
    files: npt.NDArray[np.uint64]
    counts: Counts
    ranking: npt.NDArray[np.float64]
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)
    images: int = 0
    resumed: int = 0
    used: dict[str, Any] = field(default_factory=dict)
    kept: dict[int, Any] = field(default_factory=dict)

    @property
    def experiment(self) -> Experiment:
        """The settings."""
        return self.task.experiment

    @property
    def dataset(self) -> Any:
        """The dataset that was evaluated."""
        return self.task.dataset

    @property
    def fingerprint(self) -> str:
        """Changes with anything that could change a count: settings, weights, versions, files, classes."""
        return digest.of_text(json.dumps(self.identity, sort_keys=True), self.files.tobytes().hex())[:16]

    @cached_property
    def summary(self) -> dict[str, float]:
        """The headline numbers, 0..1 or NaN, in the first process."""
        return self.task.summary(self.counts, self.kept)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A row per class (per category, for task anomaly), its name under "class"; in the first process."""
        return self.task.class_rows(self.counts, self.kept)

    @property
    def headline(self) -> str:
        """The main figure, in words: "mIoU 42.10"."""
        name, value = self.task.headline, self.summary[self.task.headline]
        return f"{name} {100 * value:.2f}" if math.isfinite(value) else f"{name} n/a ({self.undefined[name]})"

    @cached_property
    def undefined(self) -> dict[str, str]:
        """Why a measure of `summary` cannot be computed, by its name."""
        return {
            name: self.task.why_not(name, self.counts)
            for name, value in self.summary.items()
            if not math.isfinite(value)
        }

    @property
    def warnings(self) -> list[str]:
        """Oddities of the counts, and the measures that cannot be computed; in the first process."""
        names: dict[str, list[str]] = {}
        for name, why in self.undefined.items():
            if not name.endswith(self.task.parts):
                names.setdefault(why, []).append(name)
        return [
            *self.task.warnings(self.counts),
            *(f"n/a: {', '.join(measures)} ({why})" for why, measures in names.items()),
        ]

    def table(self) -> str:
        """The rows in Markdown, shares in per cent, with the summary as the last row if it has the same columns."""
        columns = [name for name, value in self.rows[0].items() if isinstance(value, float)]
        lines = [f"| {self.task.unit} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        last = {"class": "mean", **{name: self.summary[name] for name in columns if name in self.summary}}
        for row in [*self.rows, *([last] if len(last) == len(columns) + 1 else [])]:
            shares = ("n/a" if math.isnan(row[name]) else f"{100 * row[name]:.1f}" for name in columns)
            lines.append(f"| {row['class']} | {' | '.join(shares)} |")
        return "\n".join(lines) + "\n"


def identity_of(task: Task, used: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides the counts except the images' files, in JSON's types, to compare with a saved one.

    These are the loaded model, the settings, versions, the list of images, and classes.
    """
    dataset = task.dataset
    found = {
        **used,
        "experiment": task.experiment.facts(),
        "versions": {name: own for name, own in versions().items() if name != "python"},
        "classes": digest.of_text(*dataset.names),
        "number of images": len(dataset),
        "images": digest.of_text(*(item.key for item in dataset.items)),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def versions() -> dict[str, str]:
    """Versions of densevl, Python, and the packages that process images."""
    found = {"densevl": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
