"""Damage on objects: measures per category, then their plain mean (`metrics.anomaly`).

Pixels of all test images of a category are pooled, including flawless ones. Measures rank raw scores over a category,
which cannot be added up image by image, so each image's map is kept on its patch grid, with the mask.
"""

from __future__ import annotations

import base64
import io
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from densevl.anomaly.maps import to_pixels
from densevl.anomaly.result import AnomalyResult
from densevl.errors import EvaluationError
from densevl.evaluation.benchmarks.base import Sample
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.metrics.anomaly import EXACT, TOLERANCE, AnomalyMetrics, ranked
from densevl.evaluation.predictors import AnomalyPredictor
from densevl.evaluation.tasks.base import Counted, Counts, Kept, Picture, Task, painted
from densevl.pipelines.settings import load

COLUMNS = ("image_auroc", "image_ap", "image_f1", "pixel_auroc", "pixel_ap", "pixel_f1", "aupro")
ERROR = "pixel_auroc_error"
SETTINGS = ("states", "size", "tile", "adapters")
"""Keywords of `AnomalyDetector`; other options of an experiment are fields of the scoring."""
UNIT = 2**30
"""The running AUROC is rounded to 1 / UNIT, so that it adds up exactly in any order."""
NAN = float("nan")


class AnomalyTask(Task):
    """A score per pixel and per image."""

    headline = column = "pixel_auroc"
    running = "AUROC of single images"
    unit, keeps = "category", True

    def __init__(self, experiment: Experiment, dataset: Any) -> None:
        super().__init__(experiment, dataset)
        for name in dataset.names:  # missing shots are reported before the model loads
            dataset.references(name, experiment.shots)

    def load(self, asked: Experiment, device: str | None) -> AnomalyPredictor:
        backbone = load(asked.model, asked.weights, device, asked.precision)
        own = {name: value for name, value in asked.options.items() if name in SETTINGS}
        fields = {name: value for name, value in asked.options.items() if name not in SETTINGS}
        more = {"proxy": asked.proxy, "options": fields, **own}
        return AnomalyPredictor(self.dataset, backbone, asked.scoring, shots=asked.shots, **more)

    def zeros(self) -> Counts:
        """For each category: images, damaged images, images with an AUROC of their own, and its sum in 1 / UNIT."""
        return {"images": np.zeros((4, len(self.dataset.names)), np.int64)}

    def predict(self, predictor: Any, sample: Sample) -> AnomalyResult:
        found: AnomalyResult = predictor(sample)
        if found.image.shape[:2] != sample.image.shape[:2]:
            raise EvaluationError(
                f"the map of '{sample.item.key}' is {found.image.shape[:2]}, its image {sample.image.shape[:2]}"
            )
        return found

    def count(self, index: int, sample: Sample, found: AnomalyResult) -> Counted:
        counts, own = self.zeros(), _own_auroc(found.grid, sample.truth)
        ranked_one = (0, 0) if np.isnan(own) else (1, round(own * UNIT))
        counts["images"][:, self.dataset.names.index(sample.item.category)] = (1, sample.truth.any(), *ranked_one)
        kept = {
            "score": found.score,
            "size": list(sample.truth.shape),
            "grid": [list(found.grid.shape), _packed(found.grid.astype("<f4").tobytes())],
            "mask": _packed(np.packbits(sample.truth).tobytes()),
        }
        return Counted(counts, own, kept)

    def so_far(self, counts: Counts) -> float:
        _, _, images, own = counts["images"].sum(axis=1)
        return float(own / images / UNIT) if images else NAN

    def judge(self, kept: Kept) -> list[dict[str, float]]:
        """The measures of each category."""

        def measures(name: str) -> dict[str, float]:
            metrics = AnomalyMetrics()
            for index, item in enumerate(self.dataset.items):
                if item.category == name:
                    metrics.update(*_unpacked(kept[index]))
            return metrics.compute()

        with ThreadPoolExecutor() as pool:  # sorting, which takes most of the time, releases the interpreter's lock
            return list(pool.map(measures, self.dataset.names))

    def summary(self, counts: Counts, kept: Kept) -> dict[str, float]:
        columns = {name: np.array([row[name] for row in self.judged(kept)]) for name in COLUMNS}
        means = {name: NAN if np.isnan(own).all() else float(np.nanmean(own)) for name, own in columns.items()}
        errors = [row[ERROR] for row in self.judged(kept) if not np.isnan(row[ERROR])]
        return means | ({ERROR: max(errors)} if any(errors) else {})

    def why_not(self, measure: str, counts: Counts) -> str:
        if not counts["images"][1].any():
            return "no pixel is marked as damaged"
        kinds = "flawless and damaged images" if measure.startswith("image") else "sound and damaged pixels"
        return f"no category has both {kinds}"

    def class_rows(self, counts: Counts, kept: Kept) -> list[dict[str, Any]]:
        rows = []
        for name, images, found in zip(self.dataset.names, counts["images"][0], self.judged(kept), strict=True):
            learned = self.dataset.references(name, self.experiment.shots)
            known = {"images": int(images), "references": " ".join(item.image.name for item in learned)}
            rows.append({"class": name, **{key: found[key] for key in COLUMNS}, **known})
        return rows

    def facts(self, counts: Counts) -> dict[str, Any]:
        images, damaged, _, _ = counts["images"].sum(axis=1)
        return {
            "amount": f"{len(self.dataset.names)} categories, {int(damaged):,} of {int(images):,} images damaged",
            "protocol": {
                "aggregation": "every category by itself, then the plain mean of categories",
                "pixels": "those of all test images of a category together, flawless ones too; raw scores, at the size "
                "of the image",
                "accuracy": f"rates exact up to {EXACT:,} pixels a category, beyond to {TOLERANCE:.3%} of their counts",
                "F1": "the largest over thresholds, which are chosen by the truth",
                "AUPRO": "up to a false positive rate of 0.3",
                "shots": f"{self.experiment.shots} flawless training images a category, the first by name",
            },
        }

    def pictures(self, sample: Sample, found: AnomalyResult) -> tuple[tuple[str, Picture], ...]:
        truth = painted(sample.image, sample.truth.astype(np.int16) - 1, ("damage",))
        return ("photo", sample.image), ("truth", truth), ("heat map", found.overlay())

    def dump(self, index: int, sample: Sample, found: AnomalyResult) -> dict[str, bytes]:
        buffer = io.BytesIO()
        np.save(buffer, found.grid, allow_pickle=False)
        return {f"{sample.item.key}.npy": buffer.getvalue()}


def _own_auroc(grid: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> float:
    """AUROC of one image's patches, weighted by their damaged and sound pixels; NaN if nothing is damaged."""
    share = F.adaptive_avg_pool2d(torch.from_numpy(mask[None].astype(np.float32)), grid.shape)[0].numpy()
    order = np.argsort(-grid, axis=None, kind="stable")
    damaged = share.ravel()[order].astype(np.float64)
    return ranked(1 - damaged, damaged, grid.ravel()[order].astype(np.float64))["auroc"]


def _packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


def _unpacked(kept: dict[str, Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], float]:
    """The map (H, W), the mask and the score of an image."""
    (height, width), (shape, grid) = kept["size"], kept["grid"]
    values, bits = (zlib.decompress(base64.b64decode(text)) for text in (grid, kept["mask"]))
    patches = torch.from_numpy(np.frombuffer(values, "<f4").reshape(shape).astype(np.float32))
    mask = np.unpackbits(np.frombuffer(bits, np.uint8), count=height * width).reshape(height, width)
    return to_pixels(patches, (height, width)).numpy(), mask.astype(bool), kept["score"]
