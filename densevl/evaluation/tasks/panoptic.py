"""A segment per pixel: panoptic quality (`metrics.panoptic`)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from densevl.evaluation.benchmarks.base import Sample
from densevl.evaluation.benchmarks.coco import PanopticMap
from densevl.evaluation.metrics.panoptic import Segment, panoptic_counts, panoptic_quality
from densevl.evaluation.tasks.base import Counted, Counts, Kept, Picture, compared
from densevl.evaluation.tasks.regions import RegionTask
from densevl.files import json_text
from densevl.regions.result import RegionResult


class PanopticTask(RegionTask):
    """A segment per pixel, counted by matched segments."""

    headline = running = column = "PQ"
    parts = (" things", " stuff")

    def zeros(self) -> Counts:
        return {"panoptic": np.zeros((4, len(self.dataset.names)), np.int64)}

    def predict(self, predictor: Any, sample: Sample) -> PanopticMap:
        first = int(self.dataset.classes.background)
        names = self.dataset.classes.names
        stuff = tuple(name for name, thing in zip(names, self.dataset.things[first:], strict=True) if not thing)

        def segments(result: RegionResult) -> PanopticMap:
            found = result.panoptic(stuff=stuff, **self.experiment.resolve)
            parts = [Segment(int(part["id"]), int(part["label"]) + first) for part in found.segments]
            ids = found.ids.astype(np.int64)
            if first and (ids == 0).any():  # pixels of no object are the ground, a segment like others
                ids[ids == 0] = len(parts) + 1
                parts.append(Segment(len(parts) + 1, 0))
            return PanopticMap(ids, tuple(parts))

        return predictor(sample, segments)

    def count(self, index: int, sample: Sample, found: PanopticMap) -> Counted:
        truth: PanopticMap = sample.truth
        counts = panoptic_counts(truth.ids, truth.segments, found.ids, found.segments, len(self.dataset.names))
        return Counted({"panoptic": counts}, panoptic_quality(counts)["PQ"])

    def so_far(self, counts: Counts) -> float:
        return panoptic_quality(counts["panoptic"])["PQ"]

    def summary(self, counts: Counts, kept: Kept) -> dict[str, float]:
        table = panoptic_quality(counts["panoptic"])
        for name, wanted in (("things", True), ("stuff", False)):
            chosen = [index for index, thing in enumerate(self.dataset.things) if thing == wanted]
            table |= {f"{key} {name}": value for key, value in panoptic_quality(counts["panoptic"], chosen).items()}
        return table

    def why_not(self, measure: str, counts: Counts) -> str:
        kind = measure.split()[-1] if " " in measure else "segments"
        return f"no {kind} in truth or prediction"

    def class_rows(self, counts: Counts, kept: Kept) -> list[dict[str, Any]]:
        rows = []
        for index, name in enumerate(self.dataset.names):
            _, matched, extra, missed = (int(value) for value in counts["panoptic"][:, index])
            own = panoptic_quality(counts["panoptic"], [index])
            rows.append({"class": name, **own, "matched": matched, "found only": extra, "missed": missed})
        return rows

    def facts(self, counts: Counts) -> dict[str, Any]:
        _, matched, _, missed = counts["panoptic"].sum(axis=1)
        return {
            "amount": f"{int(matched + missed):,} segments",
            "protocol": {
                "PQ": "COCO's: pairs of a class with IoU over .5, means over categories that occur",
                "void": "found segments that lie for more than half in void or crowds count nowhere",
                "ground": "pixels of no object are one segment of class 0" if self.dataset.classes.background else "",
            },
        }

    def pictures(self, sample: Sample, found: PanopticMap) -> tuple[tuple[str, Picture], ...]:
        return compared(sample.image, _classes(sample.truth), _classes(found), self.dataset.names)

    def dump(self, index: int, sample: Sample, found: PanopticMap) -> dict[str, bytes]:
        ids, buffer = found.ids, io.BytesIO()
        Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(buffer, "PNG")
        segments = [{"id": s.id, "category_id": self.dataset.categories[s.category]["id"]} for s in found.segments]
        name = f"{sample.item.key}.png"
        entry = {"image_id": sample.item.entry["id"], "file_name": name, "segments_info": segments}
        return {name: buffer.getvalue(), f"{sample.item.key}.json": (json_text(entry) + "\n").encode()}


def _classes(panoptic: PanopticMap) -> npt.NDArray[np.int16]:
    """Class of each pixel, -1 for void."""
    numbers = np.array([0, *(segment.id for segment in panoptic.segments)])
    classes = np.array([-1, *(segment.category for segment in panoptic.segments)], np.int16)
    order = np.argsort(numbers)
    return np.asarray(classes[order][np.searchsorted(numbers[order], panoptic.ids)])
