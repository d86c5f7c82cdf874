"""Objects with scores: mask AP of COCO or LVIS (`metrics.average_precision`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from densevl.evaluation.benchmarks.base import Sample
from densevl.evaluation.benchmarks.coco import Objects
from densevl.evaluation.metrics.average_precision import CAP, LVIS_CAP, RARITIES, Table, average_precision
from densevl.evaluation.tasks.base import Counted, Counts, Kept, Picture, compared
from densevl.evaluation.tasks.regions import RegionTask
from densevl.files import json_text
from densevl.proposals.base import Proposals
from densevl.regions.result import RegionResult

HIT = 0.5
"""IoU at which the running figure counts an object as found."""


@dataclass(frozen=True, eq=False)
class Instances:
    """Attributes: labels int64 (N,), class index; scores (N,), best first; masks, N COCO RLE, compressed."""

    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    masks: tuple[dict[str, Any], ...]


class InstanceTask(RegionTask):
    """Objects with scores; those of every image are kept, because AP ranks them over the dataset."""

    headline, running, column, keeps = "AP", "R50", "AP", True
    parts = (" small", " medium", " large", *(f" {name}" for name in RARITIES.values()))

    def zeros(self) -> Counts:
        """ "objects": non-crowd objects of the truth, objects found, and objects of the truth that were matched."""
        return {"objects": np.zeros((3, len(self.dataset.names)), np.int64)}

    def predict(self, predictor: Any, sample: Sample) -> Instances:
        first = int(self.dataset.classes.background)

        def best(result: RegionResult) -> Instances:
            found = result.instances(**{"top": self._cap, **self.experiment.resolve})
            return Instances(found.labels + first, found.confidence, tuple(found.regions.to_rle()))

        return predictor(sample, best)

    @property
    def _cap(self) -> int:
        return LVIS_CAP if self.dataset.federated else CAP

    def count(self, index: int, sample: Sample, found: Instances) -> Counted:
        truth: Objects = sample.truth
        real = ~truth.crowd
        met = np.zeros(len(truth.labels), bool)
        if len(truth.labels) and len(found.labels):
            overlap = coco_mask.iou(list(found.masks), list(truth.masks), truth.crowd.astype(np.uint8).tolist())
            overlap[found.labels[:, None] != truth.labels[None]] = 0
            overlap[:, truth.crowd] = 0
            for row in overlap:
                row = np.where(met, 0, row)
                best = int(row.argmax())
                met[best] |= bool(row[best] >= HIT)
        classes = len(self.dataset.names)
        rows = [
            np.bincount(labels, minlength=classes) for labels in (truth.labels[real], found.labels, truth.labels[met])
        ]
        kept = [
            [int(label), float(score), mask["counts"]]
            for label, score, mask in zip(found.labels, found.scores, found.masks, strict=True)
        ]
        share = float(met.sum() / real.sum()) if real.any() else float("nan")
        return Counted({"objects": np.stack(rows).astype(np.int64)}, share, kept)

    def so_far(self, counts: Counts) -> float:
        objects, _, met = counts["objects"].sum(axis=1)
        return float(met / objects) if objects else float("nan")

    def summary(self, counts: Counts, kept: Kept) -> dict[str, float]:
        return {**self.judged(kept)[0], "R50": self.so_far(counts)}

    def why_not(self, measure: str, counts: Counts) -> str:
        if not counts["objects"][0].any():
            return "the truth has no objects"
        return f"the truth has no {measure.split()[-1]} objects" if " " in measure else "the truth has no objects of it"

    def class_rows(self, counts: Counts, kept: Kept) -> list[dict[str, Any]]:
        rows, by_category = [], self.judged(kept)[1]
        for number, (name, category) in enumerate(zip(self.dataset.names, self.dataset.categories, strict=True)):
            objects, found, met = (int(value) for value in counts["objects"][:, number])
            rows.append({"class": name, **by_category[category["id"]], "objects": objects, "found": found, "met": met})
        return rows

    def facts(self, counts: Counts) -> dict[str, Any]:
        return {
            "amount": f"{int(counts['objects'][0].sum()):,} objects",
            "protocol": {
                "AP": "COCO's: IoU .50 to .95, 101 recall points, mean over categories that occur",
                "detections": f"at most {self._cap} an image",
                "score": "probability of the class times the quality of the mask",
                "federated": "a category counts in images that have it, or that were searched for it in vain"
                if self.dataset.federated
                else "",
                "R50": "objects met by a detection of their class, IoU .5 or more",
            },
        }

    def pictures(self, sample: Sample, found: Instances) -> tuple[tuple[str, Picture], ...]:
        some = found.scores >= 0.5
        masks = tuple(mask for mask, shown in zip(found.masks, some, strict=True) if shown)
        shape = (sample.image.shape[0], sample.image.shape[1])
        background = 0 if self.dataset.classes.background else -1
        truth, seen = (
            np.array([background, *labels], np.int16)[Proposals.from_rle(parts, shape).segment_map()]
            for labels, parts in ((sample.truth.labels, sample.truth.masks), (found.labels[some], masks))
        )
        return compared(sample.image, truth, seen, self.dataset.names)

    def dump(self, index: int, sample: Sample, found: Instances) -> dict[str, bytes]:
        rows = self.results({index: self.count(index, sample, found).kept})
        return {f"{sample.item.key}.json": (json_text(rows) + "\n").encode()}

    def results(self, kept: Kept) -> list[dict[str, Any]]:
        """All kept predictions as COCO results."""
        rows = []
        for index, found in kept.items():
            image = self.dataset.items[index].entry
            size = [int(image["height"]), int(image["width"])]
            for label, score, counts in found:
                category = self.dataset.categories[label]["id"]
                mask = {"size": size, "counts": counts}
                rows.append({"image_id": image["id"], "category_id": category, "score": score, "segmentation": mask})
        return rows

    def judge(self, kept: Kept) -> tuple[Table, dict[Any, Table]]:
        found, federated = self.results(kept), self.dataset.federated
        return average_precision(self.dataset.as_coco(), found, cap=self._cap, federated=federated)
