"""The state of a `FewShot`: its model, its classes, and a head for each kind of feature."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import torch

from densevl import digest
from densevl.backbones import Backbone
from densevl.errors import ModelError
from densevl.fewshot import Head
from densevl.fewshot.calibration import Calibration
from densevl.fewshot.prompts.head import PromptLearner
from densevl.fewshot.prompts.visual import Looking
from densevl.fewshot.words import as_text, class_rows
from densevl.inference.kinds import levelled
from densevl.pipelines.fewshot.features import Encoded, ImageFeatures, PixelFeatures, RegionFeatures
from densevl.pipelines.segmentation.evidence import Evidence
from densevl.pipelines.segmentation.segmenter import Labels, Segmenter
from densevl.vocabulary import Background, LabelSet
from densevl.vocabulary.prompts import Prompt
from densevl.vocabulary.text_classifier import TextClassifier

MIXED = (
    "images and words are mixed, and a whole image is closer to images than to any word: use only one kind, or name "
    "regions or pixels, where both are put on one scale"
)


class Learned:
    """What was learned from examples and words.

    Attributes:
        level: "image", "region" or "pixel". head: its name, with the settings it was created with. has_words: whether
            the model compares images and words. labels: None before `fit`. heads: by kind of feature. counts: examples
            by class. pictures: one hash per whole image learned from. calibration: of confidence. guessed: how
            examples were found among unlabelled images, if they were. guided: how many classes crops rank again, or
            None.
    """

    level: str
    head: str
    settings: dict[str, Any]
    segmenter: Segmenter
    backbone: Backbone
    coverage: float
    tokens: int
    features: ImageFeatures | RegionFeatures | PixelFeatures
    has_words: bool
    labels: LabelSet | None
    heads: dict[str, Head]
    counts: Counter[str]
    pictures: frozenset[str]
    calibration: Calibration
    guessed: str | None
    guided: int | None

    def judge(self, encoded: Encoded, labels: LabelSet | None = None) -> Evidence:
        """Score the places of an encoded photo, by the fitted head or by the words of `labels` alone.

        Raises:
            ModelError: If nothing was fitted, and there are no labels.
        """
        if labels is not None:
            text = self.segmenter.embed_text(labels, self.segmenter.background)
            return Evidence(levelled((encoded.features @ text.vectors.mT)[None], text), encoded.windows, text)
        names, head = self.fitted().names, self.heads["pixel"]
        scores = head.logits(encoded.features)[None] / head.scale
        return Evidence(scores, encoded.windows, as_text(head.text, names))

    def facts(self) -> dict[str, Any]:
        """Return everything that affects a result besides the image and regions, with fitted state, ready for JSON."""
        features = self.features
        whole = features.classify.facts() if isinstance(features, RegionFeatures) else self.segmenter.facts()
        states = {kind: head.state() for kind, head in self.heads.items()}
        tensors = ((f"{kind}/{name}", rows) for kind, (own, _) in states.items() for name, rows in sorted(own.items()))
        return {
            **whole,
            "background": asdict(self.segmenter.background),
            "level": self.level,
            "head": self.head,
            "settings": self.settings,
            "coverage": self.coverage,
            "tokens": self.tokens,
            "guided": self.guided,
            "labels": self.labels.facts() if self.labels is not None else None,
            "calibration": asdict(self.calibration),
            "learned": {"sha256": digest.of_tensors(tensors), **{kind: own for kind, (_, own) in states.items()}},
        }

    def see(self, *, learned: bool = True) -> bool:
        """Set how whole images are read: as the head learned, or as the model does. Return whether they differ."""
        features, head = self.features, self.heads.get("image")
        if not isinstance(features, ImageFeatures):
            return False
        tokens = head.tokens if learned and isinstance(head, PromptLearner) else None
        features.look = features.plain if tokens is None else Looking(self.backbone, tokens)
        return tokens is not None

    def tower(self) -> Any:
        """Return the model, for head "prompt", which uses more of it than `Backbone` defines."""
        return self.backbone

    def templates(self) -> tuple[str, ...]:
        """Return the templates that head "prompt" learned, or those it was given if they are better.

        Any pipeline with the same model accepts them as `templates`, for any labels.

        Raises:
            ModelError: If the head is another one, nothing was fitted, or contexts depend on the image.
        """
        self.fitted()
        head = next(iter(self.heads.values()))
        if not isinstance(head, PromptLearner):
            raise ModelError(f"head '{self.head}' leaves the words as they are; 'prompt' learns templates")
        head.require_unconditioned()
        return head.templates

    def words(self, labels: Labels) -> torch.Tensor:
        """Embed any labels with the templates that head "prompt" learned: unit rows (C, D) float32, one per class.

        Raises:
            ModelError: If the head is another one, or nothing was fitted.
            LabelError: If the labels are unusable.
        """
        asked = LabelSet.parse(labels)
        text = TextClassifier(self.backbone, self.templates(), use_cache=False)
        return class_rows(text.encode(asked), len(asked))

    def fitted(self) -> LabelSet:
        if self.labels is None or not self.heads:
            raise ModelError("no examples yet: call fit(examples) first, or give labels for words alone")
        return self.labels

    def taught(self) -> tuple[str, ...]:
        """Return the classes that have examples."""
        return tuple(name for name in self.fitted().names if self.counts[name])

    def warnings(self, labels: LabelSet) -> tuple[str, ...]:
        """Return what the user should know about classes that are only defined by words."""
        if not self.has_words:
            return ()
        taught = self.taught() if self.labels is not None else ()
        policy = Background() if self.level == "image" else self.segmenter.background
        found = self.segmenter.words.warnings(labels, policy, taught=taught)
        shown = [isinstance(query, Prompt) and query.shown for query in labels.queries]
        return (*found, MIXED) if self.labels is None and any(shown) and not all(shown) else found

    def meta(self) -> dict[str, Any]:
        found = {kind: dict(head.found) for kind, head in self.heads.items()}
        facts = {"head": self.head, "level": self.level, "examples": dict(self.counts), "found": found}
        return {"fewshot": facts if self.guessed is None else {**facts, "unlabelled": self.guessed}}
