"""From a region classifier to named regions in a benchmark's own classes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.evaluation.benchmarks.class_lists import DISPLAY, ClassList
from densevl.evaluation.benchmarks.coco import Objects, RegionSample
from densevl.evaluation.predictors import Clock
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.segmenter import BackgroundSpec
from densevl.proposals import Proposals
from densevl.regions.result import RegionResult

TRUTH = "truth"
"""Proposals that are the true masks: what naming alone would reach."""


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
    ) -> None:
        """Args: strings: a variant of the class list; proposals: the proposer's name, or "truth".

        Raises:
            LabelError: unknown strings or background.
        """
        self.classifier, self.classes, self.proposals = classifier, classes, proposals
        self.labels = classes.labels(strings)
        self.policy = classifier.policy(background)
        self.clock = Clock()

    def facts(self) -> dict[str, Any]:
        """What was really used, ready for JSON."""
        own = self.classifier
        return {
            "model": own.backbone.name,
            "recipe": own.recipe.name if own.recipe is not None else None,
            "operators": ", ".join(f"{name} {weight:g}" for name, weight in own.operators.items()),
            "proposals": self.proposals,
            "protocol": asdict(own.protocol),
            "background": str(self.policy),
            "strings": len(self.labels.queries),
        }

    def __call__(self, sample: RegionSample, resolve: Callable[[RegionResult], Any]) -> Any:
        """Name the regions of an image and make of them what `resolve` does.

        Raises:
            DensevlError: as `RegionClassifier`.
        """
        since = time.perf_counter()
        given = true_masks(sample) if self.proposals == TRUTH else None
        result = self.classifier(sample.image, self.labels, regions=given, background=self.policy)
        since = self.clock.add("score", since)
        found = resolve(result)
        self.clock.add("decide", since)
        return found


def true_masks(sample: RegionSample) -> Proposals:
    """The masks of the truth as proposals: crowds and void are left out."""
    size = (sample.image.shape[0], sample.image.shape[1])
    truth = sample.truth
    if isinstance(truth, Objects):
        return Proposals.from_rle(
            [mask for mask, crowd in zip(truth.masks, truth.crowd, strict=True) if not crowd], size
        )
    ids: npt.NDArray[np.int64] = truth.ids
    segments = [segment for segment in truth.segments if not segment.crowd]
    return Proposals.from_masks([ids == segment.id for segment in segments], size)
