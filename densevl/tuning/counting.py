"""Candidates on pictures: how much each gets right, with one pass of the image tower for all that share it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from densevl.backbones import Backbone
from densevl.evaluation.metrics.confusion import confusion
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.segmenter import Segmenter
from densevl.proposals import Proposals
from densevl.recipes import get
from densevl.tuning.candidates import CLASSIFY, REGIONS, SEGMENT, Candidate, number
from densevl.tuning.pictures import Pictures
from densevl.tuning.scores import Counts

SHARED = 64
"""Windows of a photo whose features are held at once; larger photos are run once per candidate."""
Cell = tuple[Counts, float]
"""Counts (3, C) of a candidate on a picture, see `scores`, and the seconds it takes alone."""


class Counter(ABC):
    """Counts candidates on pictures.

    Attributes: measure: the name of the measure, see `scores.MEASURES`. shares: settings that share one tower pass.
    """

    measure: ClassVar[str] = "mIoU"
    shares: ClassVar[tuple[str, ...]] = ()

    def __init__(self, backbone: Backbone, pictures: Pictures, **given: Any) -> None:
        """Args: given: proxy and proposals, for recipes that read them."""
        self.backbone, self.pictures, self.given = backbone, pictures, given
        self.classes = len(pictures.labels) + pictures.background
        self.pipeline: Callable[[Candidate], Any] = cache(self._pipeline)
        self._warm: set[Candidate] = set()

    def count(self, index: int, candidates: Sequence[Candidate]) -> dict[Candidate, Cell]:
        """Count candidates on one picture.

        Raises:
            DensevlError: the picture cannot be read, or a candidate cannot run.
        """
        rgb, known = self.pictures.read(index)
        truth = self.truth(index, rgb, known)
        found: dict[Candidate, Cell] = {}

        def shared(candidate: Candidate) -> tuple[str, ...]:
            return tuple(str(candidate[name]) for name in self.shares)

        for _, together in groupby(sorted(candidates, key=shared), key=shared):
            found |= self.counted(rgb, truth, list(together))
        return found

    def truth(self, index: int, rgb: npt.NDArray[np.uint8], known: Any) -> Any:
        """The truth of a picture, with which candidates are compared."""
        return known

    @abstractmethod
    def counted(self, rgb: npt.NDArray[np.uint8], truth: Any, together: Sequence[Candidate]) -> dict[Candidate, Cell]:
        """Count candidates that share a pass of the tower."""

    @abstractmethod
    def _pipeline(self, candidate: Candidate) -> Any:
        """The pipeline of a candidate, on the loaded model."""

    def facts(self, candidate: Candidate) -> dict[str, Any]:
        """Facts of a candidate's pipeline, ready for JSON."""
        return dict(self.pipeline(candidate).facts())

    def _borrowed(self, candidate: Candidate) -> dict[str, Any]:
        """Keywords for the inputs that a candidate's recipe reads."""
        name = candidate["recipe"] or self.backbone.default_recipe
        reads = get(name).reads if isinstance(name, str) else frozenset()
        found = {"proxy": self.given.get("proxy")} if "proxy" in reads else {}
        return found | ({"proposals": self.given.get("proposals")} if reads & {"regions", "masks"} else {})


class PixelCounter(Counter):
    """Count label maps by pixels."""

    shares = ("recipe", "plan", "precision")

    def _pipeline(self, candidate: Candidate) -> Segmenter:
        return Segmenter(
            self.backbone,
            candidate["recipe"],
            templates=candidate["templates"],
            background=candidate["background"] or "auto",
            protocol=candidate["plan"],
            precision=candidate["precision"],
            **self._borrowed(candidate),
        )

    def counted(self, rgb: npt.NDArray[np.uint8], truth: Any, together: Sequence[Candidate]) -> dict[Candidate, Cell]:
        return {
            candidate: (self.against(truth, labels), seconds)
            for candidate, (labels, seconds) in self.maps(rgb, together).items()
        }

    def maps(
        self, rgb: npt.NDArray[np.uint8], together: Sequence[Candidate]
    ) -> dict[Candidate, tuple[npt.NDArray[np.int16], float]]:
        """The label map of each candidate, int16 (H, W), 0 for background if there is one; and its seconds."""
        labels, found = self.pictures.labels, {}
        first: Segmenter = self.pipeline(together[0])
        started = time.perf_counter()
        segments, prepared = first.segments(rgb), first.prepare(rgb) if first.separable else None
        dense = first.run(prepared.parts) if prepared is not None and len(prepared.windows) <= SHARED else None
        passed = time.perf_counter() - started
        for candidate in together:
            segment: Segmenter = self.pipeline(candidate)
            policy = segment.policy()
            if candidate not in self._warm:  # words are encoded once for all pictures, so no picture's time includes it
                segment.words.for_photo(rgb, labels, policy)
                self._warm.add(candidate)
            since = time.perf_counter()
            if dense is not None and prepared is not None and segment.separable:
                evidence = segment.gather(prepared, dense, labels, policy)
            else:
                evidence = segment.look(rgb, labels, policy, segments)
            decided = segment.decide(evidence, rgb, labels, policy, segments).labels
            found[candidate] = decided + np.int16(self.pictures.background), passed + time.perf_counter() - since
        return found

    def against(self, truth: npt.NDArray[np.int16], labels: npt.NDArray[np.int16]) -> Counts:
        """Counts (3, C) of one label map against another, int16 (H, W) each."""
        matrix = confusion(truth, labels, self.classes)
        return np.stack([np.diagonal(matrix)[:-1], matrix[:-1].sum(axis=1), matrix[:, :-1].sum(axis=0)])


class RegionCounter(Counter):
    """Count names of true regions: the best that naming alone can reach."""

    measure = "accuracy"
    shares = ("operator", "recipe", "precision")

    def _pipeline(self, candidate: Candidate) -> RegionClassifier:
        borrowed = {name: own for name, own in self._borrowed(candidate).items() if name != "proposals"}
        return RegionClassifier(
            self.backbone,
            candidate["operator"],
            recipe=candidate["recipe"],
            templates=candidate["templates"],
            precision=candidate["precision"],
            background="none",
            proposals=None,
            **borrowed,
        )

    def counted(self, rgb: npt.NDArray[np.uint8], truth: Any, together: Sequence[Candidate]) -> dict[Candidate, Cell]:
        size, single = (rgb.shape[0], rgb.shape[1]), ~truth.crowd
        masks = Proposals.from_rle([mask for mask, one in zip(truth.masks, single, strict=True) if one], size)
        seen = masks.areas > 0
        owners, found = truth.labels[single][seen], {}
        if not seen.any():
            return {candidate: (np.zeros((3, self.classes), np.int64), 0.0) for candidate in together}
        started = time.perf_counter()
        embedded = self.pipeline(together[0]).embed(rgb, regions=masks.select(seen))
        passed = time.perf_counter() - started
        for candidate in together:
            since = time.perf_counter()
            labels = self.pipeline(candidate).name(embedded, self.pictures.labels).labels
            found[candidate] = _tally(owners, labels, self.classes), passed + time.perf_counter() - since
        return found


class ImageCounter(Counter):
    """Count names of whole images."""

    measure = "accuracy"

    def _pipeline(self, candidate: Candidate) -> FewShot:
        looks: dict[str, Any] = {
            name: number(value) for name in ("guided", "presence") if (value := candidate[name]) is not None
        }
        return FewShot(self.backbone, templates=candidate["templates"], **looks)

    def counted(self, rgb: npt.NDArray[np.uint8], truth: Any, together: Sequence[Candidate]) -> dict[Candidate, Cell]:
        found = {}
        for candidate in together:
            since = time.perf_counter()
            name = self.pipeline(candidate)(rgb, self.pictures.labels).name
            number = np.array([self.pictures.labels.names.index(name)])
            found[candidate] = _tally(np.array([truth]), number, self.classes), time.perf_counter() - since
        return found


COUNTERS: Mapping[str, type[Counter]] = {SEGMENT: PixelCounter, REGIONS: RegionCounter, CLASSIFY: ImageCounter}


def _tally(truth: Iterable[int], found: Iterable[int], classes: int) -> Counts:
    """Counts (3, C) of things by their true and predicted classes, -1 for none."""
    counts = np.zeros((3, classes), np.int64)
    for own, other in zip(map(int, truth), map(int, found), strict=True):
        counts[0, own] += own == other
        counts[1, own] += 1
        if other >= 0:
            counts[2, other] += 1
    return counts
