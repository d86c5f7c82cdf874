"""`Segmenter`: a photo and some words to a label map."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from densevl import __version__
from densevl.backbones import Backbone, Protocol, load_backbone
from densevl.errors import LabelError, ModelError, ProtocolError, RecipeError
from densevl.images import keep_ratio_size, read_image, resize
from densevl.inference import WindowGrid, class_scores, decode, window_scores
from densevl.inference.decoding import present
from densevl.recipes import Recipe, get
from densevl.refine import Pamr
from densevl.results import SegmentationResult
from densevl.vocabulary import NOTHING, Background, LabelSet, TextOptions
from densevl.vocabulary.parsing import short
from densevl.vocabulary.text_classifier import TextClassifier, TextEmbeddings

Labels = LabelSet | str | Path | Sequence[str] | Mapping[str, Iterable[str]]
BackgroundSpec = str | float | Sequence[str] | Background | None

KEPT_VOCABULARIES = 16
REPORTED = ("torch", "open_clip_torch", "timm")


class Segmenter:
    """Open-vocabulary segmentation with one model and one recipe; call it with an image and labels.

    >>> segment = Segmenter("auto")
    >>> result = segment("cat.jpg", ["cat", "dog | puppy"])
    >>> result.save("out/cat.png")
    """

    def __init__(
        self,
        model: str | Backbone = "auto",
        recipe: str | Recipe | None = None,
        *,
        weights: str | Path | None = None,
        templates: str | Sequence[str] | None = None,
        text: TextOptions | None = None,
        background: BackgroundSpec = "auto",
        presence: float | None = None,
        protocol: Protocol | Mapping[str, Any] | None = None,
        refine: str | None = None,
        device: str | None = None,
        use_cache: bool = True,
    ) -> None:
        """Load the model.

        Args:
            model: a name as `load_backbone` takes it, or a loaded `Backbone`.
            recipe: a name from `densevl.recipes.names()` or a `Recipe`; None takes the model's default.
            weights: a checkpoint file, if `model` names an architecture or config.
            templates: prompt templates (see `vocabulary.templates`); None takes the model's own.
            text: descriptors, template weights by image, hierarchies; None is none of them.
            background: when a pixel gets no label: "auto" (the model's default), "none", "unknown", "1-max", a
                probability, words that compete, or a list such as "voc"; see `Background.parse`.
            presence: a class that reaches this probability (0..1) at no patch, at the model's own logit scale, is
                judged not in the image: it is dropped before labels are decided and named in `meta["absent"]`; its
                scores stay. MaskCLIP's prompt denoising has 0.5. None keeps all.
            protocol: resize and windows: a `Protocol`, or a dict of changes to the model's own; None takes that.
            refine: "pamr" lets scores flow between pixels of like colour, which sharpens outlines; None does not.
            device: "cpu", "cuda"; None chooses.
            use_cache: keep text embeddings on disk.

        Raises:
            ModelError, WeightsError, MissingExtraError: the model cannot be loaded.
            RecipeError: unknown recipe or refinement, or a model to which recipes do not apply.
            LabelError: unusable templates, text options, background or presence. ProtocolError: impossible windows.
        """
        chosen = get(recipe) if recipe is not None else None  # a mistyped recipe fails before the model loads
        if refine not in (None, "pamr"):
            raise RecipeError(f"no refinement '{refine}'; it is 'pamr' or none")
        if presence is not None and not 0.0 < presence < 1.0:
            raise LabelError(f"presence {presence} is outside 0..1; it is a probability, or None to keep every label")
        self.refine, self.presence = refine, presence
        if isinstance(model, Backbone) and (weights is not None or device is not None):
            raise ModelError("weights and device belong to loading; this backbone is loaded already, leave them out")
        self.backbone = model if isinstance(model, Backbone) else load_backbone(model, weights, device=device)
        if chosen is not None and self.backbone.default_recipe is None:
            raise RecipeError(
                f"model '{self.backbone.name}' has no attention to rewire, so recipe '{chosen.name}' does not apply; "
                "leave the recipe out, or use a CLIP model"
            )
        self.recipe = chosen or (get(self.backbone.default_recipe) if self.backbone.default_recipe else None)
        self.protocol = self._protocol(protocol)
        self.background = self._policy(background)
        self._classifier = TextClassifier(self.backbone, templates, text, use_cache=use_cache)
        self._vocabularies: dict[tuple[LabelSet, Background], TextEmbeddings] = {}

    def __call__(self, image: Any, labels: Labels, *, background: BackgroundSpec = "auto") -> SegmentationResult:
        """Segment one image.

        Args:
            image: path, PIL image, numpy (H, W, 3) uint8 RGB, or torch (3, H, W); see `densevl.images.read_image`.
            labels: the classes; "car | truck" are two words for one class; see `LabelSet.parse`.
            background: overrides the segmenter's policy for this call.

        Returns:
            labels (H, W) int16 at the image's own size, -1 where nothing; see `SegmentationResult`.

        Raises:
            LabelError: unusable labels. ImageError: unreadable image.
        """
        label_set = LabelSet.parse(labels)
        same = isinstance(background, str) and background == "auto"
        policy = self.background if same else self._policy(background)
        rgb = read_image(image)
        started = time.perf_counter()
        text = self._embed(label_set, policy)
        if self._classifier.options.needs_image:
            text = self._classifier.for_image(text, self._image_feature(rgb))
        scores, plan = self._score(rgb, text)
        part, absent = self._present(scores, text, label_set)
        # If every string is dropped there is nothing to hand pixels to: all stay, and stand for nothing.
        classes = text.classes[part] if part.any() else torch.full_like(text.classes, NOTHING)
        scale = self.protocol.logit_scale
        if text.bias is not None:
            scores = scores + text.bias / scale
        refine = self._refinement(rgb)
        decided = decode(
            scores[..., part] if len(classes) < len(part) else scores,
            plan,
            classes,
            scale=scale,
            threshold=policy.threshold,
            rest=policy.rest,
            refine=refine,
        )
        del refine  # its weights are large; `scores` makes them again
        return SegmentationResult(
            labels=decided.labels[0].cpu().numpy(),
            names=label_set.names,
            confidence=decided.confidence[0].cpu().numpy(),
            image=rgb,
            meta=self._meta(image, policy, absent, time.perf_counter() - started),
            warnings=self._warnings(label_set, policy),
            scores_fn=lambda: (
                class_scores(scores, plan, text.classes, len(label_set), self._refinement(rgb))[0].cpu().numpy()
            ),
        )

    def _refinement(self, rgb: np.ndarray) -> Pamr | None:
        return Pamr(self.backbone.normalize(rgb)[None]) if self.refine else None

    def _protocol(self, given: Protocol | Mapping[str, Any] | None) -> Protocol:
        if isinstance(given, Protocol):
            return given
        unknown = set(given or {}) - {field.name for field in fields(Protocol)}
        if unknown:
            known = ", ".join(field.name for field in fields(Protocol))
            raise ProtocolError(f"a protocol has no field '{min(unknown)}'; its fields are {known}")
        return replace(self.backbone.protocol, **(given or {}))

    def _policy(self, background: BackgroundSpec) -> Background:
        default = Background.parse(self.backbone.background)
        if isinstance(background, str) and background == "auto":
            return default
        policy = Background.parse(background)
        # Words compete beside the model's own "none of these", where it has one: it may not know the words.
        return replace(policy, unknown=policy.unknown or default.unknown) if policy.words else policy

    def _embed(self, labels: LabelSet, policy: Background) -> TextEmbeddings:
        key = (labels, policy)
        if key not in self._vocabularies:
            if len(self._vocabularies) >= KEPT_VOCABULARIES:
                self._vocabularies.pop(next(iter(self._vocabularies)))
            self._vocabularies[key] = self._classifier.encode(labels, policy)
        return self._vocabularies[key]

    def _image_feature(self, rgb: np.ndarray) -> torch.Tensor:
        """(D,) of the whole image, by the model's own preprocessing."""
        pixels = self.backbone.preprocess(Image.fromarray(rgb))[None].to(self.backbone.device)
        return self.backbone.encode_image(pixels)[0].float()

    def _present(
        self, scores: torch.Tensor, text: TextEmbeddings, labels: LabelSet
    ) -> tuple[torch.Tensor, tuple[str, ...]]:
        """Which queries (T,) take part, and the names of the classes that do not."""
        kept = torch.ones(scores.shape[-1], dtype=torch.bool, device=scores.device)
        if self.presence is None:
            return kept, ()
        scale = self.backbone.logit_scale
        found = present(scores, text.classes, len(labels), scale=scale, threshold=self.presence)[0]
        kept = (text.classes == NOTHING) | found[text.classes.clamp(min=0)]
        return kept, tuple(name for name, here in zip(labels.names, found.tolist(), strict=True) if not here)

    def _warnings(self, labels: LabelSet, policy: Background) -> tuple[str, ...]:
        words = self.backbone.uncovered([*labels.queries, *labels.negatives, *policy.words])
        found = [f"word not covered by model '{self.backbone.name}': {short(word)}" for word in words]
        bare = self._classifier.undescribed(labels)
        if bare:
            listed = ", ".join(short(name) for name in bare[:5]) + ", ..." * (len(bare) > 5)
            found.append(f"no descriptors for {listed}: embedded by the templates alone")
        return tuple(found)

    def _score(self, rgb: Any, text: TextEmbeddings) -> tuple[torch.Tensor, Any]:
        height, width = rgb.shape[:2]
        size = (height, width)
        protocol, patch = self.protocol, self.backbone.patch_size
        if protocol.short_side is not None:
            size = keep_ratio_size(height, width, protocol.short_side, protocol.long_side)
        if protocol.crop is None:  # one window: whole patches instead of padding
            size = tuple(max(1, round(side / patch)) * patch for side in size)
        pixels = self.backbone.normalize(resize(rgb, size))[None]
        windows = WindowGrid.place(*size, protocol.crop, protocol.stride, patch, protocol.blend)
        scores, windows = window_scores(self.backbone, pixels, text.vectors, windows, recipe=self.recipe)
        return scores, windows.plan(height, width)

    def _meta(self, image: Any, policy: Background, absent: Sequence[str], seconds: float) -> dict[str, Any]:
        return {
            "versions": {"densevl": __version__, **{name: version(name) for name in REPORTED}},
            "image": os.fspath(image) if isinstance(image, (str, os.PathLike)) else None,
            "model": self.backbone.name,
            "recipe": repr(self.recipe) if self.recipe else None,
            "templates": list(self._classifier.templates),
            "text": self._classifier.options.facts(),
            "text_fingerprint": self.backbone.text_fingerprint,
            "device": str(self.backbone.device),
            "protocol": asdict(self.protocol),
            "background": str(policy),
            "presence": self.presence,
            "absent": list(absent),
            "refine": self.refine,
            "seconds": round(seconds, 3),
        }
