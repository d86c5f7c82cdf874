"""The tasks over regions: instances by COCO's or LVIS's mask AP, panoptic maps by PQ."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from densevl.evaluation.benchmarks.coco import Objects, PanopticMap, RegionDataset, RegionSample
from densevl.evaluation.metrics.average_precision import CAP, average_precision
from densevl.evaluation.metrics.federated import CAP as FEDERATED_CAP
from densevl.evaluation.metrics.panoptic import Segment, panoptic_counts, panoptic_quality
from densevl.evaluation.metrics.semantic import AllCounts
from densevl.evaluation.tasks import Counted, Kept
from densevl.proposals.base import Proposals
from densevl.regions.result import RegionResult

HIT = 0.5
"""IoU from which an object counts as found on the way."""


@dataclass(frozen=True, eq=False)
class Instances:
    """Attributes: labels int64 (N,), class index; scores (N,), best first; masks, N COCO RLE, compressed."""

    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    masks: tuple[dict[str, Any], ...]


@dataclass(frozen=True, eq=False)
class InstanceTask:
    """Objects with scores; every image's are kept, for AP ranks them over the dataset.

    Attributes: dataset; resolve: keywords of `RegionResult.instances`.
    """

    dataset: RegionDataset
    resolve: Mapping[str, Any] = field(default_factory=dict)
    _known: dict[str, Any] = field(default_factory=dict, repr=False)
    headline, running, column, keeps = "AP", "R50", "AP", True

    def zeros(self) -> AllCounts:
        """ "objects": objects of the truth that are no crowd, objects found, and those of the truth that were met."""
        return {"objects": np.zeros((3, len(self.dataset.names)), np.int64)}

    def predict(self, predictor: Any, sample: RegionSample) -> Instances:
        first = int(self.dataset.classes.background)

        def best(result: RegionResult) -> Instances:
            found = result.instances(**{"top": self._cap, **self.resolve})
            return Instances(found.labels + first, found.scores, tuple(found.regions.to_rle()))

        return predictor(sample, best)

    @property
    def _cap(self) -> int:
        return FEDERATED_CAP if self.dataset.spec.federated else CAP

    def count(self, index: int, sample: RegionSample, found: Instances) -> Counted:
        truth: Objects = sample.truth  # type: ignore[assignment]
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

    def so_far(self, counts: AllCounts) -> float:
        objects, _, met = counts["objects"].sum(axis=1)
        return float(met / objects) if objects else float("nan")

    def summary(self, counts: AllCounts, kept: Kept) -> dict[str, float]:
        return {**self._judged(kept)[0], "R50": self.so_far(counts)}

    def class_rows(self, counts: AllCounts, kept: Kept) -> list[dict[str, Any]]:
        rows, by_category = [], self._judged(kept)[1]
        for number, (name, category) in enumerate(zip(self.dataset.names, self.dataset.categories, strict=True)):
            objects, found, met = (int(value) for value in counts["objects"][:, number])
            rows.append({"class": name, **by_category[category["id"]], "objects": objects, "found": found, "met": met})
        return rows

    def facts(self, counts: AllCounts) -> dict[str, Any]:
        return {
            "amount": f"{int(counts['objects'][0].sum()):,} objects",
            "protocol": {
                "AP": "COCO's: IoU .50 to .95, 101 recall points, mean over categories that occur",
                "detections": f"at most {self._cap} an image",
                "score": "probability of the class times the quality of the mask",
                "federated": "a category counts in images that have it, or that were searched for it in vain"
                if self.dataset.spec.federated
                else "",
                "R50": "objects met by a detection of their class, IoU .5 or more",
            },
        }

    def pictures(self, sample: RegionSample, found: Instances) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
        truth: Objects = sample.truth  # type: ignore[assignment]
        first = int(self.dataset.classes.background)
        shape = (sample.image.shape[0], sample.image.shape[1])
        some = found.scores >= 0.5
        masks = tuple(mask for mask, shown in zip(found.masks, some, strict=True) if shown)
        rest = 0 if first else -1
        return tuple(  # type: ignore[return-value]
            np.array([rest, *labels], np.int16)[Proposals.from_rle(parts, shape).segment_map()]
            for labels, parts in ((truth.labels, truth.masks), (found.labels[some], masks))
        )

    def dump(self, index: int, sample: RegionSample, found: Instances) -> dict[str, bytes]:
        rows = self.results({index: self.count(index, sample, found).kept})
        return {f"{sample.item.key}.json": (json.dumps(rows) + "\n").encode()}

    def results(self, kept: Kept) -> list[dict[str, Any]]:
        """Everything kept as COCO results."""
        rows = []
        for index, found in kept.items():
            image = self.dataset.images[index]
            size = [int(image["height"]), int(image["width"])]
            for label, score, counts in found:
                category = self.dataset.categories[label]["id"]
                mask = {"size": size, "counts": counts}
                rows.append({"image_id": image["id"], "category_id": category, "score": score, "segmentation": mask})
        return rows

    def _judged(self, kept: Kept) -> tuple[dict[str, float], dict[Any, dict[str, float]]]:
        if self._known.get("kept") is not kept:
            truth, found = self.dataset.truth(), self.results(kept)
            self._known.update(
                kept=kept, judged=average_precision(truth, found, cap=self._cap, federated=self.dataset.spec.federated)
            )
        return self._known["judged"]


@dataclass(frozen=True, eq=False)
class PanopticTask:
    """A segment a pixel, counted by matched segments.

    Attributes: dataset; resolve: keywords of `RegionResult.panoptic`.
    """

    dataset: RegionDataset
    resolve: Mapping[str, Any] = field(default_factory=dict)
    headline = running = column = "PQ"
    keeps = False

    def zeros(self) -> AllCounts:
        return {"panoptic": np.zeros((4, len(self.dataset.names)), np.int64)}

    def predict(self, predictor: Any, sample: RegionSample) -> PanopticMap:
        first = int(self.dataset.classes.background)
        names = self.dataset.classes.names
        stuff = tuple(name for name, thing in zip(names, self.dataset.things[first:], strict=True) if not thing)

        def segments(result: RegionResult) -> PanopticMap:
            found = result.panoptic(stuff=stuff, **self.resolve)
            parts = [Segment(int(part["id"]), int(part["label"]) + first) for part in found.segments]
            ids = found.ids.astype(np.int64)
            if first and (ids == 0).any():  # what is no object is the ground, a segment like others
                ids[ids == 0] = len(parts) + 1
                parts.append(Segment(len(parts) + 1, 0))
            return PanopticMap(ids, tuple(parts))

        return predictor(sample, segments)

    def count(self, index: int, sample: RegionSample, found: PanopticMap) -> Counted:
        truth: PanopticMap = sample.truth  # type: ignore[assignment]
        counts = panoptic_counts(truth.ids, truth.segments, found.ids, found.segments, len(self.dataset.names))
        return Counted({"panoptic": counts}, panoptic_quality(counts)["PQ"])

    def so_far(self, counts: AllCounts) -> float:
        return panoptic_quality(counts["panoptic"])["PQ"]

    def summary(self, counts: AllCounts, kept: Kept) -> dict[str, float]:
        table = panoptic_quality(counts["panoptic"])
        for name, wanted in (("things", True), ("stuff", False)):
            chosen = [index for index, thing in enumerate(self.dataset.things) if thing == wanted]
            table |= {f"{key} {name}": value for key, value in panoptic_quality(counts["panoptic"], chosen).items()}
        return table

    def class_rows(self, counts: AllCounts, kept: Kept) -> list[dict[str, Any]]:
        rows = []
        for index, name in enumerate(self.dataset.names):
            _, matched, extra, missed = (int(value) for value in counts["panoptic"][:, index])
            own = panoptic_quality(counts["panoptic"], [index])
            rows.append({"class": name, **own, "matched": matched, "found only": extra, "missed": missed})
        return rows

    def facts(self, counts: AllCounts) -> dict[str, Any]:
        _, matched, _, missed = counts["panoptic"].sum(axis=1)
        return {
            "amount": f"{int(matched + missed):,} segments",
            "protocol": {
                "PQ": "COCO's: pairs of a class with IoU over .5, means over categories that occur",
                "void": "found segments that lie for more than half in void or crowds count nowhere",
                "ground": "what is no object is one segment of class 0" if self.dataset.classes.background else "",
            },
        }

    def pictures(self, sample: RegionSample, found: PanopticMap) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
        return _classes(sample.truth), _classes(found)  # type: ignore[arg-type]

    def dump(self, index: int, sample: RegionSample, found: PanopticMap) -> dict[str, bytes]:
        ids, buffer = found.ids, io.BytesIO()
        Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(buffer, "PNG")
        segments = [{"id": s.id, "category_id": self.dataset.categories[s.category]["id"]} for s in found.segments]
        name = f"{sample.item.key}.png"
        entry = {"image_id": self.dataset.images[index]["id"], "file_name": name, "segments_info": segments}
        return {name: buffer.getvalue(), f"{sample.item.key}.json": (json.dumps(entry) + "\n").encode()}


def _classes(panoptic: PanopticMap) -> npt.NDArray[np.int16]:
    """Class of each pixel, -1 for void."""
    numbers = np.array([0, *(segment.id for segment in panoptic.segments)])
    classes = np.array([-1, *(segment.category for segment in panoptic.segments)], np.int16)
    order = np.argsort(numbers)
    return np.asarray(classes[order][np.searchsorted(numbers[order], panoptic.ids)])
