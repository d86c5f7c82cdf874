"""The result of an analysis, and helpers that all analyses share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.evaluation.analyses.photos import Photos
from densevl.evaluation.benchmarks.base import Dataset, Sample

Show = Callable[[str], None]
Row = dict[str, str | int | float]
Labels = npt.NDArray[np.int16]
Mask = npt.NDArray[np.bool_]
Picture = npt.NDArray[np.uint8]


FEW = 10
"""Fewer objects, pairs or answers than these are too few for a conclusion."""


@dataclass(frozen=True)
class Chart:
    """Attributes: series, (x, y) points by name, y 0..1; across, up, titles of the axes; named, texts for some x."""

    series: Mapping[str, Sequence[tuple[float, float]]]
    across: str
    up: str
    named: Mapping[float, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """A conclusion from the figures of an analysis.

    Attributes:
        text: the figures and the threshold they are compared with. advice: what to do; "" for nothing.
    """

    text: str
    advice: str = ""


@dataclass(frozen=True)
class Left:
    """An analysis that was left out. Attributes: name; reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Analysis:
    """The result of an analysis.

    Attributes:
        name; text, what was done and counted. tables: rows by title, the first "" and titled by the name; floats are
            shares 0..1, NaN where there is nothing to count. charts; findings, the most important first.
    """

    name: str
    text: str
    tables: Mapping[str, Sequence[Row]]
    charts: Sequence[Chart] = ()
    findings: Sequence[Finding] = field(default=())

    @property
    def rows(self) -> Sequence[Row]:
        """Rows of the first table."""
        return next(iter(self.tables.values()))


def is_labelled(dataset: Dataset) -> bool:
    """Whether images have a truth."""
    return not isinstance(dataset, Photos)


def each(dataset: Dataset, show: Show | None, what: str) -> Iterator[Sample]:
    """The images in order; `show` is called with the current one."""
    for index in range(len(dataset)):
        if show is not None:
            show(f"{what}, image {index + 1} of {len(dataset)}")
        yield dataset[index]


def reference(sample: Sample, found: Labels, classes: int) -> Labels:
    """The labels that answers are compared with: the truth, or without one the answer to the photo itself.

    Args:
        found: (H, W), the answer; -1, nothing, becomes `classes`, which is scored too.
    """
    return np.where(found < 0, classes, found).astype(np.int16) if sample.item.label is None else sample.truth


def mean_of(values: Sequence[float] | npt.NDArray[Any]) -> float:
    """The mean; NaN if there are no values."""
    numbers = np.asarray(values, float)
    return float(numbers.mean()) if numbers.size else float("nan")


def percent(value: float) -> str:
    """A share in words."""
    return "n/a" if value != value else f"{100 * value:.0f} %"


def points(value: float) -> str:
    """A difference of shares in words."""
    return "n/a" if value != value else f"{100 * value:+.0f} points"
