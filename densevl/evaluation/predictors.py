"""From a pipeline to predictions in a benchmark's classes: for pixels, for regions, and for damage."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl import digest
from densevl.anomaly.result import AnomalyResult
from densevl.backbones import Backbone
from densevl.errors import EvaluationError
from densevl.evaluation.benchmarks.anomaly import AnomalyDataset
from densevl.evaluation.benchmarks.base import Sample
from densevl.evaluation.benchmarks.class_lists import DISPLAY, ClassList
from densevl.evaluation.benchmarks.coco import Objects
from densevl.evaluation.experiment import TRUTH
from densevl.images import bit_depth
from densevl.inference import decode
from densevl.inference.views import Views
from densevl.pipelines.anomaly.detector import AnomalyDetector
from densevl.pipelines.feeding import settle
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.concepts import Concepts
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Segmenter
from densevl.proposals import Proposals
from densevl.proposals.decoded import DecodedFiles
from densevl.regions.result import RegionResult
from densevl.vocabulary import LabelSet
from densevl.weights import require_finite


@dataclass
class Clock:
    """Seconds spent by part: "score" runs the model and its recipe, "decide" turns scores into labels."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, part: str, since: float) -> float:
        """Add the time since `since` to a part and return the current time."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - since
        return now


@dataclass(frozen=True, eq=False)
class Prediction:
    """Attributes: labels int16 (H, W), class index, -1 for nothing; confidence float32 (H, W), 0..1."""

    labels: npt.NDArray[np.int16]
    confidence: npt.NDArray[np.float32]


class Predictor:
    """A segmenter, a class list and a background rule; call it with uint8 RGB (H, W, 3)."""

    def __init__(
        self,
        segmenter: Segmenter,
        classes: ClassList,
        *,
        strings: str = DISPLAY,
        background: BackgroundSpec = "auto",
        min_share: float = 0.0,
    ) -> None:
        """Args: strings: a variant of the class list; min_share: the papers' area threshold, see `decode`.

        Raises:
            LabelError: strings or background are unknown.
            EvaluationError: an area threshold is combined with a refinement.
        """
        self.segmenter, self.classes, self.min_share = segmenter, classes, min_share
        self.labels = classes.labels(strings)
        # Without a background class every pixel gets a class, so no rule applies by default.
        no_rule = isinstance(background, str) and background == "auto" and not classes.background
        self.policy = segmenter.policy("none" if no_rule else background)
        own = segmenter.policy() if no_rule else self.policy
        #: The rule of `Segmenter` that is left out here, as text; "" if none is.
        self.left_out = str(own) if own != self.policy else ""
        self.clock = Clock()
        if min_share and (segmenter.refine or segmenter.presence):
            raise EvaluationError("min_share does not go with refine or presence; leave one of them out")

    def with_labels(self, labels: LabelSet) -> Predictor:
        """The same predictor with other words; class indices follow them."""
        other = copy(self)
        other.labels = labels
        return other

    def with_options(self, *, plan: str | None = None, views: str | None = None) -> Predictor:
        """The same predictor with another plan of windows, or other views, as `Segmenter` takes them.

        Raises:
            ProtocolError: there is no such plan, or no such views.
        """
        other, segmenter = copy(self), copy(self.segmenter)
        if plan is not None:
            segmenter.protocol = settle(plan, segmenter.protocol, segmenter.recipe)
        if views is not None:
            segmenter.views = Views.parse(views)
        other.segmenter = segmenter
        return other

    def facts(self) -> dict[str, Any]:
        """The settings in use, ready for JSON."""
        return _facts(self.segmenter, self.segmenter.recipe, self.policy, self.labels)

    @property
    def calibration(self) -> tuple[float, float]:
        """Slope and offset from log odds to the log odds of confidence; see `InferenceProtocol`."""
        return self.segmenter.protocol.calibration

    def logits(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Scaled scores (C, H, W) of the labels, without background words."""
        segments = self.segmenter.segments(rgb)
        evidence = self.segmenter.look(rgb, self.labels, self.policy, segments)
        result = self.segmenter.decide(evidence, rgb, self.labels, self.policy, segments)
        return result.scores * np.float32(self.segmenter.protocol.logit_scale)

    def __call__(self, rgb: npt.NDArray[np.uint8]) -> Prediction:
        """Label an image."""
        since = time.perf_counter()
        segments = self.segmenter.segments(rgb)
        evidence = self.segmenter.look(rgb, self.labels, self.policy, segments)
        since = self.clock.add("score", since)
        require_finite(evidence.scores, f"scores of model '{self.segmenter.backbone.name}'")
        if self.min_share:
            protocol, text = self.segmenter.protocol, evidence.text
            bias = 0 if text.bias is None else text.bias / protocol.logit_scale
            decided = decode(
                evidence.scores + bias,
                evidence.windows.plan(rgb.shape[0], rgb.shape[1]),
                text.classes,
                scale=protocol.logit_scale,
                threshold=self.policy.threshold,
                rest=self.policy.rest,
                min_share=self.min_share,
                calibration=protocol.calibration,
            )
            decided = evidence.limited(decided)
            labels, confidence = decided.labels[0].cpu().numpy(), decided.confidence[0].cpu().numpy()
        else:
            result = self.segmenter.decide(evidence, rgb, self.labels, self.policy, segments)
            labels, confidence = result.labels, result.confidence
        if self.classes.background:
            labels = labels + np.int16(1)  # nothing, -1, is background, 0
        self.clock.add("decide", since)
        return Prediction(labels, confidence)


class ConceptPredictor:
    """A concept model, a class list and a background rule; call it with uint8 RGB (H, W, 3)."""

    def __init__(
        self,
        concepts: Concepts,
        classes: ClassList,
        *,
        strings: str = DISPLAY,
        background: BackgroundSpec = "auto",
        min_share: float = 0.0,
    ) -> None:
        """Args: strings: a variant of the class list.

        Raises:
            LabelError: strings or background are unknown.
            EvaluationError: there is an area threshold.
        """
        self.segmenter, self.classes, self.clock = concepts, classes, Clock()
        self.labels = classes.labels(strings)
        no_rule = isinstance(background, str) and background == "auto" and not classes.background
        self.policy = concepts.policy("none" if no_rule else background)
        if min_share:
            raise EvaluationError("min_share does not go with a concept model; leave it out")

    def with_labels(self, labels: LabelSet) -> ConceptPredictor:
        """The same predictor with other words; class indices follow them."""
        other = copy(self)
        other.labels = labels
        return other

    def facts(self) -> dict[str, Any]:
        """The settings in use, ready for JSON."""
        words = [*self.labels.queries, *self.policy.words]
        return {
            **self.segmenter.facts(),
            "warnings": list(self.segmenter.warnings(self.labels)),
            "about": self.segmenter.backbone.about,
            "background": str(self.policy),
            "strings": len(self.labels.queries),
            "words": digest.of_text(*words),
        }

    def __call__(self, rgb: npt.NDArray[np.uint8]) -> Prediction:
        """Label an image."""
        since = time.perf_counter()
        maps = self.segmenter.maps(rgb, self.labels, self.policy)
        since = self.clock.add("score", since)
        labels, confidence = self.segmenter.decide(maps, self.policy)
        if self.classes.background:
            labels = labels + np.int16(1)  # nothing, -1, is background, 0
        self.clock.add("decide", since)
        return Prediction(labels, confidence)


class RegionPredictor:
    """A region classifier, a class list and a background rule; call it with a sample."""

    def __init__(
        self,
        classifier: RegionClassifier,
        classes: ClassList,
        *,
        strings: str = DISPLAY,
        background: BackgroundSpec = "auto",
        proposals: str = "",
        decoder: DecodedFiles | None = None,
    ) -> None:
        """Args: strings: a variant of the class list; proposals: the proposer's name, or "truth"; decoder: has masks.

        Raises:
            LabelError: strings or background are unknown.
        """
        self.classifier, self.classes = classifier, classes
        self.proposals = proposals if decoder is None else "decoder"
        self._decoder = decoder
        self.labels = classes.labels(strings)
        self.policy = classifier.policy(background)
        self.clock = Clock()

    def facts(self) -> dict[str, Any]:
        """The settings in use, ready for JSON."""
        found = _facts(self.classifier, self.classifier.recipe, self.policy, self.labels)
        return found if found["proposals"] is not None else {**found, "proposals": self.proposals}

    def __call__(self, sample: Sample, resolve: Callable[[RegionResult], Any]) -> Any:
        """Name the regions of an image and apply `resolve` to the result.

        Raises:
            DensevlError: as `RegionClassifier`.
        """
        since = time.perf_counter()
        given: Any = true_masks(sample) if self.proposals == TRUTH else None
        if self._decoder is not None:
            decoded = self._decoder.of(sample.item.image)
            given = decoded.select(decoded.areas > 0)
        result = self.classifier(sample.image, self.labels, regions=given, background=self.policy)
        since = self.clock.add("score", since)
        found = resolve(result)
        self.clock.add("decide", since)
        return found


class AnomalyPredictor:
    """A detector per category, all on one model; call it with a sample.

    A category's detector is named after it, and learns from the category's first flawless images when its first test
    image comes. It is dropped when an image of another category comes.
    """

    def __init__(
        self, dataset: AnomalyDataset, backbone: Backbone, scoring: str, *, shots: int = 0, **more: Any
    ) -> None:
        """Args: shots: number of images to learn from; more: keywords of `AnomalyDetector`.

        Raises:
            EvaluationError: there are fewer training images than shots.
            DensevlError: as `AnomalyDetector`.
        """
        self.dataset, self.shots = dataset, shots
        self.clock = Clock()
        self._category, self._detector = "", AnomalyDetector(backbone, scoring, **more)
        more |= {"scoring": self._detector.scoring, "proxy": self._detector.proxy, "options": None}  # loaded once
        self._make = partial(AnomalyDetector, backbone, **more)
        learned = [item for name in dataset.names for item in dataset.references(name, shots)]
        files = digest.of_text(*(digest.of_file(item.image) for item in learned)) if learned else None
        fitted = ("item", "masked", "memory", "spread", "thresholds")
        own = {name: value for name, value in self._detector.facts().items() if name not in fitted}
        self._facts = {**own, "about": backbone.about, "recipe": None, "shots": shots, "references": files}

    def facts(self) -> dict[str, Any]:
        """The settings in use, ready for JSON."""
        return self._facts

    def __call__(self, sample: Sample) -> AnomalyResult:
        """Score an image with the detector of its category."""
        since = time.perf_counter()
        category = sample.item.category
        if category != self._category:
            self._category, self._detector = category, self._make(item=category.replace("_", " "))
            if learned := self.dataset.references(category, self.shots):
                with bit_depth(self.dataset.bits):
                    self._detector.fit([item.image for item in learned])
            since = self.clock.add("fit", since)
        found = self._detector(sample.image)
        self.clock.add("score", since)
        return found


def _facts(pipeline: Segmenter | RegionClassifier, recipe: Any, policy: Any, labels: LabelSet) -> dict[str, Any]:
    """Facts of a pipeline that names things: its own, the recipe by name, the background rule, and the words."""
    found = pipeline.facts()
    words = [*labels.queries, *policy.words]
    return {
        **found,
        "warnings": list(pipeline.backbone.doubts(words)),
        "about": pipeline.backbone.about,
        "recipe": recipe.name if recipe is not None else None,
        "parts": found["recipe"],
        "background": str(policy),
        "strings": len(labels.queries),
        "words": digest.of_text(*labels.queries),
    }


def true_masks(sample: Sample) -> Proposals:
    """The true masks as proposals, without crowds, void, and annotations too small for a pixel."""
    size = (sample.image.shape[0], sample.image.shape[1])
    truth = sample.truth
    if isinstance(truth, Objects):
        masks = [mask for mask, crowd in zip(truth.masks, truth.crowd, strict=True) if not crowd]
        found = Proposals.from_rle(masks, size)
        return found.select(found.areas > 0)
    segments = [segment for segment in truth.segments if not segment.crowd]
    return Proposals.from_masks([truth.ids == segment.id for segment in segments], size)
