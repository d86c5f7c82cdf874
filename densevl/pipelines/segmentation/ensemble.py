"""`Ensemble`: several models on one photo, combined by a weighted mean of their log-probabilities.

A model's scores times its logit scale are log-probabilities up to a constant at each place, which the next softmax
removes. So logits are averaged: p = softmax(sum_m w_m * scale_m * score_m), the product of the models' probabilities.
Models have different scales (cosines of a CLIP times 40, logs of a classifier times 1), which logits make comparable.
A single model keeps its labels and probabilities exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from densevl.errors import OptionError
from densevl.images import read_image
from densevl.inference.views import regrid
from densevl.pipelines.many import OnError, batch_size, hearing, many
from densevl.pipelines.segmentation.evidence import Evidence
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Labels, Segmenter
from densevl.pipelines.segmentation.segments import Segments
from densevl.results import SegmentationResult
from densevl.vocabulary import Background, LabelSet


class Ensemble:
    """Segmenters that score a photo together, called like a `Segmenter`.

    Examples:
        >>> segment = Ensemble([(Segmenter("ViT-B-16/openai"), 0.6), (Segmenter("photo"), 0.4)], background="none")

    The first segmenter with a weight above 0 leads: labels are decided on its grid of tokens, with its background,
    logit scale, presence and refinement. Each has its own recipe, proxy, windows, views, templates and text options.
    """

    def __init__(self, members: Sequence[tuple[Segmenter, float]], *, background: BackgroundSpec | None = None) -> None:
        """Normalise the weights of the members.

        Args:
            members: pairs of a segmenter and its weight, at least 0. Weights are divided by their sum, and members with
                weight 0 never run.
            background: replaces the leader's own policy.

        Raises:
            OptionError: If there are no members, or the weights or the background are unusable.
        """
        if not isinstance(members, Sequence) or not all(map(_is_member, members)):
            raise OptionError("members of an ensemble are pairs of a Segmenter and a weight, [(segmenter, 0.6), ...]")
        weights = [weight for _, weight in members]
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
            raise OptionError(f"weights {weights} of an ensemble: give numbers of at least 0, one of them above 0")
        total = sum(weights)
        self.members = tuple((segmenter, weight / total) for segmenter, weight in members if weight > 0)
        self.leader = self.members[0][0]
        self.background = self.leader.policy("auto" if background is None else background)

    @hearing
    def __call__(
        self, image: Any, labels: Labels, *, background: BackgroundSpec = "auto", regions: Any = None
    ) -> SegmentationResult:
        """Segment one image; see `Segmenter.__call__`.

        Raises:
            LabelError: If the labels are unusable.
            OptionError: If the background is not the same strings for all members.
            ImageError: If the image is unreadable.
        """
        label_set, policy, rgb = LabelSet.parse(labels), self._policy(background), read_image(image)
        started = time.perf_counter()
        segments = self.leader.segments(rgb, regions)
        found = [
            segmenter.look(
                rgb, label_set, policy, segments if segmenter is self.leader else segmenter.segments(rgb, regions)
            )
            for segmenter, _ in self.members
        ]
        return self._decide(found, rgb, label_set, policy, segments, image, started)

    def many(
        self,
        images: Iterable[Any],
        labels: Labels,
        *,
        background: BackgroundSpec = "auto",
        batch: int | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[SegmentationResult]:
        """Segment many images, in order; see `Segmenter.many`."""
        label_set, policy = LabelSet.parse(labels), self._policy(background)

        def run(together: list[tuple[Any, np.ndarray]]) -> Iterator[SegmentationResult]:
            started = time.perf_counter()
            photos = [rgb for _, rgb in together]
            looks = [segmenter.looks(photos, label_set, policy) for segmenter, _ in self.members]
            shared = (time.perf_counter() - started) / len(together)
            for (image, rgb), found in zip(together, zip(*looks, strict=True), strict=True):
                evidence, segments = [own for own, _ in found], found[0][1]
                yield self._decide(evidence, rgb, label_set, policy, segments, image, time.perf_counter() - shared)

        def share(rgb: np.ndarray) -> float:
            return max(segmenter.share(rgb, batch) for segmenter, _ in self.members)

        batch_size(batch, self.leader.backbone.device, 1)  # an impossible one fails at once
        return many(images, read_image, run, share=share, on_error=on_error)

    def _policy(self, background: BackgroundSpec) -> Background:
        same = isinstance(background, str) and background == "auto"
        return self.background if same else self.leader.policy(background)

    def _decide(
        self,
        found: Sequence[Evidence],
        rgb: np.ndarray,
        labels: LabelSet,
        policy: Background,
        segments: Segments | None,
        image: Any,
        started: float,
    ) -> SegmentationResult:
        for evidence in found:
            self._check_strings([found[0], evidence])
        result = self.leader.decide(self._joined(found), rgb, labels, policy, segments, image=image, started=started)
        rows = [
            {"model": segmenter.backbone.name, "recipe": repr(segmenter.recipe), "weight": weight}
            for segmenter, weight in self.members
        ]
        of_members = (text for segmenter, _ in self.members for text in segmenter.words.warnings(labels, policy, rgb))
        warned = dict.fromkeys((*result.warnings, *of_members))
        return replace(result, meta={**result.meta, "ensemble": rows}, warnings=tuple(warned))

    def facts(self) -> dict[str, Any]:
        """Return everything that affects a result besides the photo, its segments and the labels, ready for JSON."""
        members = [{"weight": weight, **segmenter.facts()} for segmenter, weight in self.members]
        return {"background": asdict(self.background), "members": members}

    def _check_strings(self, found: Sequence[Evidence]) -> None:
        if found[-1].text.queries != found[0].text.queries:
            names = [segmenter.backbone.name for segmenter, _ in self.members]
            raise OptionError(
                f"models {', '.join(names)} do not share a background: only some of them support 'unknown'; give "
                "the ensemble background='none', words or a probability"
            )

    def _joined(self, found: Sequence[Evidence]) -> Evidence:
        """Return the weighted sum of logits, in units of the leader's scale and on its grid."""
        lead, scale = found[0], self.leader.protocol.logit_scale
        total = torch.zeros_like(lead.scores)
        bias: torch.Tensor | None = None
        for (segmenter, weight), evidence in zip(self.members, found, strict=True):
            scores = evidence.scores.to(total)
            scores = scores if evidence is lead else regrid(scores, evidence.windows, lead.windows)
            total.add_(scores, alpha=weight * segmenter.protocol.logit_scale / scale)
            if evidence.text.bias is not None:
                own = weight * evidence.text.bias.to(total)
                bias = own if bias is None else bias + own
        seen = None
        if all(evidence.seen is not None for evidence in found):  # else some member has seen every pixel
            seen = torch.stack([evidence.seen for evidence in found if evidence.seen is not None]).any(dim=0)
        return Evidence(total, lead.windows, replace(lead.text, bias=bias), seen)


def _is_member(pair: Any) -> bool:
    is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
    return is_pair and isinstance(pair[0], Segmenter) and isinstance(pair[1], (int, float))
