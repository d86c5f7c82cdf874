"""What a task predicts, counts and reports; the runner, the saved state and the report are the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from densevl.evaluation.metrics import semantic as measuring
from densevl.evaluation.metrics.calibration import calibration
from densevl.evaluation.metrics.confusion import Counts, confused, image_miou, measures
from densevl.evaluation.metrics.semantic import AllCounts
from densevl.images import encode_png

SEMANTIC, INSTANCE, PANOPTIC = TASKS = ("semantic", "instance", "panoptic")
NOTHING = "nothing"
Kept = Mapping[int, Any]


@dataclass(frozen=True)
class Counted:
    """Attributes: counts of one image; ranking, its own score 0..1; kept, what `Keeper` keeps of it."""

    counts: AllCounts
    ranking: float
    kept: Any = None


class Task(Protocol):
    """Attributes:
    headline: the number that stands for the rest, a key of `summary`.
    running: the number shown on the way. column: of `class_rows`, drawn as bars.
    keeps: whether `Counted.kept` is used.
    """

    headline: str
    running: str
    column: str
    keeps: bool

    def zeros(self) -> AllCounts:
        """Counts of no image."""

    def predict(self, predictor: Any, sample: Any) -> Any:
        """Run the model on a sample."""

    def count(self, index: int, sample: Any, found: Any) -> Counted:
        """Count an image."""

    def so_far(self, counts: AllCounts) -> float:
        """The running number, 0..1, from counts alone."""

    def summary(self, counts: AllCounts, kept: Kept) -> dict[str, float]:
        """The headline numbers, 0..1 or NaN."""

    def class_rows(self, counts: AllCounts, kept: Kept) -> list[dict[str, Any]]:
        """A row a class, the name under "class"."""

    def facts(self, counts: AllCounts) -> dict[str, Any]:
        """More for results.json; "amount" says in words how much was scored, "protocol" how."""

    def pictures(self, sample: Any, found: Any) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
        """Label maps of truth and prediction for the report."""

    def dump(self, index: int, sample: Any, found: Any) -> dict[str, bytes]:
        """Files that keep the prediction, by name."""


@dataclass(frozen=True)
class SemanticTask:
    """A class a pixel, counted in a confusion matrix."""

    names: tuple[str, ...]
    measures: tuple[str, ...]
    boundary_ratio: float
    headline = running = "mIoU"
    column = "IoU"
    keeps = False

    def zeros(self) -> AllCounts:
        return measuring.zeros(self.measures, len(self.names))

    def predict(self, predictor: Any, sample: Any) -> Any:
        return predictor(sample.image)

    def count(self, index: int, sample: Any, found: Any) -> Counted:
        counts = measuring.count(self.measures, len(self.names), sample, found, self.boundary_ratio)
        return Counted(counts, image_miou(counts["iou"]))

    def so_far(self, counts: AllCounts) -> float:
        return measures(counts["iou"])["mIoU"]

    def summary(self, counts: AllCounts, kept: Kept) -> dict[str, float]:
        return measuring.summary(counts)

    def class_rows(self, counts: AllCounts, kept: Kept) -> list[dict[str, Any]]:
        return measuring.class_rows(counts, self.names)

    def facts(self, counts: AllCounts) -> dict[str, Any]:
        matrix: Counts = counts["iou"]
        names, pixels = (*self.names, NOTHING), int(matrix.sum())
        return {
            "amount": f"{pixels:,} scored pixels",
            "pixels": pixels,
            "confused": [
                {"truth": names[row], "found": names[column], "pixels": amount}
                for row, column, amount in confused(matrix)
            ],
            "calibration": calibration(counts["calibration"])["bins"] if "calibration" in counts else None,
            "protocol": {
                "aggregation": "counts over all images, divided once; undefined classes left out of means",
                "resolution": "labels decided at the image's own size; labels never resized",
                "ignored": "pixels that the label rule maps to no class",
                "boundary": f"{self.boundary_ratio:g} of the diagonal",
                "calibration": "15 bins of equal width, scored pixels that got a class",
            },
        }

    def pictures(self, sample: Any, found: Any) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
        return sample.truth, found.labels

    def dump(self, index: int, sample: Any, found: Any) -> dict[str, bytes]:
        # -1 wraps to 65535
        return {f"{sample.item.key}.png": encode_png(Image.fromarray(found.labels.astype(np.uint16)))}
