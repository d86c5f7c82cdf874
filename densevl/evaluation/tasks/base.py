"""The interface of a task. The runner, the saved state and the report are the same for all tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from densevl.drawing import draw_overlay
from densevl.evaluation.benchmarks.base import Dataset, Sample
from densevl.evaluation.benchmarks.class_lists import BACKGROUND
from densevl.evaluation.benchmarks.look import Look, look
from densevl.evaluation.experiment import Experiment
from densevl.proposals.load import asking
from densevl.vocabulary import TextOptions

Counts = dict[str, npt.NDArray[np.int64]]
"""Integers by measure; those of all images are added up."""
Kept = Mapping[int, Any]
"""Data by image that cannot be added up."""
Picture = npt.NDArray[np.uint8]
"""RGB (H, W, 3)."""
_WIDTH = 320
"""Smallest size of a picture with a legend, in pixels."""


@dataclass(frozen=True)
class Counted:
    """Attributes: counts of one image; ranking, its own score 0..1, NaN for none; kept, the data to keep of it."""

    counts: Counts
    ranking: float
    kept: Any = None


class Task(ABC):
    """What an experiment does with a dataset.

    Attributes:
        headline: the main figure, a key of `summary`.
        running: the figure in the progress line. column: of `class_rows`, drawn as bars.
        parts: suffixes of measures over a part of the truth, which may be empty.
        unit: what a row of `class_rows` stands for. keeps: whether `Counted.kept` is used.
    """

    headline: ClassVar[str]
    running: ClassVar[str]
    column: ClassVar[str]
    parts: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "class"
    keeps: ClassVar[bool] = False

    def __init__(self, experiment: Experiment, dataset: Any) -> None:
        self.experiment, self.dataset = experiment, dataset
        self._judged: tuple[Any, Any] = (None, None)

    def predictor(self, *, device: str | None = None) -> Any:
        """Load the model, with torch and numpy seeded. It has a `clock` and `facts()`.

        Raises:
            DensevlError: as the pipeline's constructor.
        """
        torch.manual_seed(self.experiment.seed)
        np.random.seed(self.experiment.seed)
        asked = self.experiment.resolved()
        return self.load(asked, device or asked.device)

    @abstractmethod
    def load(self, asked: Experiment, device: str | None) -> Any:
        """Load the model of an experiment whose settings are all filled in."""

    @abstractmethod
    def zeros(self) -> Counts:
        """Counts before any image."""

    @abstractmethod
    def predict(self, predictor: Any, sample: Sample) -> Any:
        """Run the model on a sample."""

    @abstractmethod
    def count(self, index: int, sample: Sample, found: Any) -> Counted:
        """Count an image."""

    @abstractmethod
    def so_far(self, counts: Counts) -> float:
        """The running figure, 0..1, from counts alone."""

    @abstractmethod
    def summary(self, counts: Counts, kept: Kept) -> dict[str, float]:
        """The main figures, 0..1 or NaN."""

    @abstractmethod
    def why_not(self, measure: str, counts: Counts) -> str:
        """Why a measure of `summary` cannot be computed."""

    @abstractmethod
    def class_rows(self, counts: Counts, kept: Kept) -> list[dict[str, Any]]:
        """A row per class, its name under "class"."""

    @abstractmethod
    def facts(self, counts: Counts) -> dict[str, Any]:
        """Further entries of results.json; "amount" says in words how much was scored, "protocol" how."""

    @abstractmethod
    def pictures(self, sample: Sample, found: Any) -> tuple[tuple[str, Picture], ...]:
        """Titles and pictures for the report: the photo, its truth, the prediction."""

    @abstractmethod
    def dump(self, index: int, sample: Sample, found: Any) -> dict[str, bytes]:
        """Files that keep the prediction, by name."""

    def finder(self, proposals: Any, asked: Experiment, device: str | None) -> Any:
        """Proposals as a pipeline takes them; a concept model among them is asked for the classes."""
        return asking(proposals, self.dataset.classes.labels(asked.strings).words, device)

    @cached_property
    def look(self) -> Look:
        """A first look at the dataset.

        Raises:
            DatasetError: the dataset contradicts itself.
            ImageError: a file cannot be read.
        """
        return look(self.dataset)

    def warnings(self, counts: Counts) -> list[str]:
        """Oddities of the counts."""
        return []

    def judge(self, kept: Kept) -> Any:
        """Compute the figures that need everything that was kept."""
        return None

    def judged(self, kept: Kept) -> Any:
        """The result of `judge`, computed once."""
        if self._judged[0] is not kept:
            self._judged = kept, self.judge(kept)
        return self._judged[1]


def pipeline_of(asked: Experiment, device: str | None) -> dict[str, Any]:
    """An experiment's settings as keywords of every pipeline that names things."""
    return {
        "weights": asked.weights,
        "templates": asked.templates,
        "text": TextOptions.parse(asked.text or None),
        "presence": asked.presence,
        "protocol": dict(asked.protocol),
        "proxy": asked.proxy,
        "proxy_scope": asked.proxy_scope or "image",
        "sam": asked.sam,
        "views": asked.views,
        "precision": asked.precision,
        "compat": bool(asked.compat),
        "device": device,
    }


def classes_of(dataset: Dataset, asked: Experiment) -> dict[str, Any]:
    """Further keywords of a predictor that names things."""
    return {"classes": dataset.classes, "strings": asked.strings, "background": asked.background}


def compared(
    image: Picture, truth: npt.NDArray[np.int16], found: npt.NDArray[np.int16], names: Sequence[str]
) -> tuple[tuple[str, Picture], ...]:
    """The pictures of a task whose truth and predictions are, or can become, label maps."""
    return ("photo", image), ("truth", painted(image, truth, names)), ("found", painted(image, found, names))


def painted(image: Picture, labels: npt.NDArray[np.int16], names: Sequence[str]) -> Picture:
    """An overlay with its legend; small images are enlarged first so that the legend can be read."""
    times = max(1, -(-_WIDTH // image.shape[1]))
    labels = np.where(labels >= len(names), -1, labels).astype(np.int16)
    if names[0] == BACKGROUND:  # left plain, so that the others stand out
        labels, names = np.maximum(labels - 1, -1).astype(np.int16), names[1:]
    big = image.repeat(times, axis=0).repeat(times, axis=1)
    return draw_overlay(big, labels.repeat(times, axis=0).repeat(times, axis=1), names)
