"""From a segmenter to label maps in a benchmark's own class indices."""

from __future__ import annotations

import time
from copy import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import EvaluationError
from densevl.evaluation.benchmarks.class_lists import DISPLAY, ClassList
from densevl.inference import decode
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Segmenter
from densevl.vocabulary import LabelSet


@dataclass(frozen=True, eq=False)
class Prediction:
    """Attributes: labels int16 (H, W), class index, -1 for nothing; confidence float32 (H, W), 0..1."""

    labels: npt.NDArray[np.int16]
    confidence: npt.NDArray[np.float32]


@dataclass
class Clock:
    """Seconds spent by part: "score" runs the model and its recipe, "decide" makes labels of scores."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, part: str, since: float) -> float:
        """Book the time since `since` to a part and return the time now."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - since
        return now


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
            LabelError: unknown strings or background. EvaluationError: an area threshold beside a refinement.
        """
        self.segmenter, self.classes, self.min_share = segmenter, classes, min_share
        self.labels = classes.labels(strings)
        # Without a background class every pixel gets a class, so no rule applies unless one is asked for.
        no_rule = isinstance(background, str) and background == "auto" and not classes.background
        self.policy = segmenter.policy("none" if no_rule else background)
        self.clock = Clock()
        if min_share and (segmenter.refine or segmenter.presence):
            raise EvaluationError("min_share does not go with refine or presence; leave one of them out")

    def with_labels(self, labels: LabelSet) -> Predictor:
        """The same with other words; class indices follow them."""
        other = copy(self)
        other.labels = labels
        return other

    def facts(self) -> dict[str, Any]:
        """What was really used, ready for JSON: names that an experiment may leave to the model's defaults."""
        segmenter = self.segmenter
        return {
            "model": segmenter.backbone.name,
            "recipe": segmenter.recipe.name if segmenter.recipe is not None else None,
            "protocol": asdict(segmenter.protocol),
            "precision": segmenter.backbone.precision,
            "background": str(self.policy),
            "strings": len(self.labels.queries),
            "proxy": segmenter.proxy.name if segmenter.proxy is not None else None,
            "compat": segmenter.compat,
            "proxy_scope": segmenter.proxy_scope,
        }

    def __call__(self, rgb: npt.NDArray[np.uint8]) -> Prediction:
        """Label an image."""
        since = time.perf_counter()
        segments = self.segmenter.segments(rgb)
        evidence = self.segmenter.look(rgb, self.labels, self.policy, segments)
        since = self.clock.add("score", since)
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
