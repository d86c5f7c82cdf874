"""A class per pixel: mIoU and related measures (`metrics.confusion`), outlines, calibration, structure."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from densevl.evaluation import papers
from densevl.evaluation.benchmarks.base import Sample
from densevl.evaluation.benchmarks.look import listed, odd_labels
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.metrics.boundary import boundary_counts, boundary_iou
from densevl.evaluation.metrics.calibration import BINS, calibration, calibration_counts
from densevl.evaluation.metrics.confusion import confused, confusion, image_miou, measures, per_class
from densevl.evaluation.metrics.structure import structure_counts, structure_summary, structure_zeros
from densevl.evaluation.predictors import ConceptPredictor, Prediction, Predictor
from densevl.evaluation.tasks.base import Counted, Counts, Kept, Picture, Task, classes_of, compared, pipeline_of
from densevl.images import encode_png
from densevl.pipelines.segmentation.concepts import OWN, Concepts, concept_settings, for_concepts
from densevl.pipelines.segmentation.segmenter import Segmenter

NOTHING = "nothing"


class SemanticTask(Task):
    """A class per pixel, counted in a confusion matrix."""

    headline = running = "mIoU"
    column = "IoU"

    def load(self, asked: Experiment, device: str | None) -> Predictor | ConceptPredictor:
        recipe = papers.recipe(asked.recipe, asked.dataset) if asked.paper and asked.recipe else asked.recipe
        more = {name: getattr(asked, name) for name in ("proposals", "refine", "upsampler")}
        more |= pipeline_of(asked, device)
        if asked.bank:
            more |= {"bank": asked.bank, "bank_share": asked.bank_share, "neighbours": asked.neighbours}
        words = classes_of(self.dataset, asked)
        own = {name: getattr(asked, name) for name in ("model", "background", *OWN)}
        if for_concepts(own):
            concepts = Concepts(**concept_settings({**more, **own, "recipe": recipe}))
            return ConceptPredictor(concepts, min_share=asked.min_share, **words)
        more["proposals"] = self.finder(asked.proposals, asked, device)
        segmenter = Segmenter(asked.model, recipe, **more)
        return Predictor(segmenter, min_share=asked.min_share, **words)

    def zeros(self) -> Counts:
        classes = len(self.dataset.names)
        blank = {"iou": (classes + 1, classes + 1), "boundary": (3, classes), "calibration": (3, BINS)}
        zeros = {name: np.zeros(shape, np.int64) for name, shape in blank.items()} | {"structure": structure_zeros()}
        return {"pixels": np.zeros(1, np.int64), **{name: zeros[name] for name in self.experiment.measures}}

    def predict(self, predictor: Any, sample: Sample) -> Any:
        return predictor(sample.image)

    def count(self, index: int, sample: Sample, found: Prediction) -> Counted:
        asked, classes = self.experiment, len(self.dataset.names)
        counts = {
            "iou": confusion(sample.truth, found.labels, classes),
            "pixels": np.array([sample.truth.size]),
        }
        if "boundary" in asked.measures:
            counts["boundary"] = boundary_counts(sample.truth, found.labels, classes, asked.boundary_ratio)
        if "calibration" in asked.measures:
            counts["calibration"] = calibration_counts(sample.truth, found.labels, found.confidence)
        if "structure" in asked.measures:
            counts["structure"] = structure_counts(sample.truth, found.labels)
        return Counted(counts, image_miou(counts["iou"]))

    def so_far(self, counts: Counts) -> float:
        return measures(counts["iou"])["mIoU"]

    def summary(self, counts: Counts, kept: Kept) -> dict[str, float]:
        table = measures(counts["iou"])
        if "boundary" in counts:
            outline = boundary_iou(counts["boundary"])
            table["boundary mIoU"] = float(np.nanmean(outline)) if not np.isnan(outline).all() else float("nan")
        if "calibration" in counts:
            errors = calibration(counts["calibration"])
            table |= {name: errors[name] for name in ("ECE", "MCE")}
        return table | (structure_summary(counts["structure"]) if "structure" in counts else {})

    def why_not(self, measure: str, counts: Counts) -> str:
        if not counts["iou"].sum():
            return "no pixel of the truth is scored"
        if measure in ("ECE", "MCE"):
            return "no scored pixel got a class"
        return "no pixel of the truth is of a class"

    def class_rows(self, counts: Counts, kept: Kept) -> list[dict[str, Any]]:
        columns = per_class(counts["iou"])
        if "boundary" in counts:
            columns["boundary IoU"] = boundary_iou(counts["boundary"])
        return [
            {"class": name, **{key: float(values[index]) for key, values in columns.items()}}
            for index, name in enumerate(self.dataset.names)
        ]

    def facts(self, counts: Counts) -> dict[str, Any]:
        names, pixels = (*self.dataset.names, NOTHING), int(counts["iou"].sum())
        return {
            "amount": f"{pixels:,} scored pixels",
            "pixels": pixels,
            "ignored": _ignored(counts),
            "classes not in the truth": self._absent(counts),
            "classes never found": [
                name for name, column in zip(names[:-1], counts["iou"].T, strict=False) if not column.any()
            ],
            "confused": [
                {"truth": names[row], "found": names[column], "pixels": amount}
                for row, column, amount in confused(counts["iou"])
            ],
            "calibration": calibration(counts["calibration"])["bins"] if "calibration" in counts else None,
            "protocol": {
                "aggregation": "counts over all images, divided once; undefined classes left out of means",
                "resolution": "labels decided at the image's own size; labels never resized",
                "ignored": "pixels that the label rule maps to no class",
                "boundary": f"{self.experiment.boundary_ratio:g} of the diagonal",
                "calibration": "15 bins of equal width, scored pixels that got a class",
            },
        }

    def warnings(self, counts: Counts) -> list[str]:
        matrix, names = counts["iou"], self.dataset.names
        absent = self._absent(counts)
        found = odd_labels(self.dataset, _ignored(counts), absent, True)
        never = [name for name, row, column in zip(names, matrix, matrix.T, strict=False) if row.any() > column.any()]
        if never:
            found.append(
                f"{len(never)} of the {len(names) - len(absent)} classes that occur were never found: {listed(never)}"
            )
        return found

    def _absent(self, counts: Counts) -> list[str]:
        """Classes absent from the truth."""
        return [name for name, row in zip(self.dataset.names, counts["iou"][:-1], strict=True) if not row.any()]

    def pictures(self, sample: Sample, found: Prediction) -> tuple[tuple[str, Picture], ...]:
        return compared(sample.image, sample.truth, found.labels, self.dataset.names)

    def dump(self, index: int, sample: Sample, found: Prediction) -> dict[str, bytes]:
        # -1 wraps to 65535
        return {f"{sample.item.key}.png": encode_png(Image.fromarray(found.labels.astype(np.uint16)))}


def _ignored(counts: Counts) -> float:
    """The share of pixels of the truth that are not scored."""
    total = int(counts["pixels"][0])
    return 1 - int(counts["iou"].sum()) / total if total else 0.0
