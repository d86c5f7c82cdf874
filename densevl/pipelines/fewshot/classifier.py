"""`FewShot`: a few examples beside the words, for images, regions or pixels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from densevl.backbones import Backbone, InferenceProtocol
from densevl.backbones.projected.projection import projection_of, with_projection
from densevl.errors import ModelError, OptionError
from densevl.fewshot.calibration import Calibration
from densevl.fewshot.result import Classification
from densevl.fewshot.tokens import COVERAGE, MOST
from densevl.images import read_image
from densevl.pipelines.borrowing import Borrowed
from densevl.pipelines.fewshot import files as fewshot_files
from densevl.pipelines.fewshot.features import (
    Encoded,
    ImageFeatures,
    PixelFeatures,
    RegionFeatures,
    Shown,
    region_features,
)
from densevl.pipelines.fewshot.learner import Learner
from densevl.pipelines.fewshot.naming import classified, named_regions, segmented
from densevl.pipelines.many import OnError, batch_size, hearing, many, one_by_one
from densevl.pipelines.segmentation import refinement
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Labels, Segmenter
from densevl.pipelines.settings import checked
from densevl.recipes import Recipe
from densevl.regions.result import RegionResult
from densevl.results import SegmentationResult
from densevl.vocabulary import LabelSet, TextOptions

OWN: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    # Places are many, and those of one image are alike: a ridge that does not fade, centres instead of all keys.
    "pixel": {"gda": {"floor": 0.1}, "tip": {"keep": 64}, "tipx": {"keep": 64}, "ape": {"keep": 64}}
}
"""Settings of heads that a level has of its own."""
WORDLESS = ("exemplars", "nearest")
"""Heads that need no words where all classes have examples."""


class FewShot(Learner):
    """Words and a few examples together name images, regions or pixels; classes without examples stay with their words.

    Examples:
        >>> name = FewShot("mini", "gda").fit({"cat": "cats/", "dog": ["a.png", "b.png"], "fish": []})
        >>> name("new.png").name
        >>> FewShot("mini")("new.png", ["cat", "dog"]).name  # by words alone
    """

    @checked
    def __init__(
        self,
        model: str | Backbone = "auto",
        head: str = "gda",
        *,
        level: str = "image",
        options: Mapping[str, Any] | None = None,
        operator: str | Mapping[str, float] | None = None,
        operator_options: Mapping[str, Mapping[str, Any]] | None = None,
        proposals: Any = None,
        coverage: float = COVERAGE,
        tokens: int = MOST,
        guided: int | None = None,
        recipe: str | Recipe | None = None,
        weights: str | Path | None = None,
        templates: str | Sequence[str] | None = None,
        text: TextOptions | None = None,
        background: BackgroundSpec = "auto",
        presence: float | None = None,
        protocol: InferenceProtocol | Mapping[str, Any] | str | None = None,
        proxy: Borrowed = None,
        proxy_scope: str = "image",
        sam: Borrowed = None,
        refine: str | Sequence[str] | None = None,
        device: str | None = None,
        precision: str | None = None,
        compat: bool = False,
        use_cache: bool = True,
    ) -> None:
        """Load the model.

        Args:
            model, recipe, weights, templates, text, background, presence, protocol, proxy, proxy_scope, sam, refine,
                device, precision, compat, use_cache: as `Segmenter` takes them. Background words compete as classes
                without examples, but not for whole images. Of `text`, descriptors and a
                transform that reads no image.
            head: "gda", "tip", "tipx", "ape", "nearest", "exemplars", "linear", "adapter", "prolip" or "prompt"; see
                `densevl.fewshot`.
            level: "image", "region" or "pixel": what examples are, and what is named.
            options: settings of the head, such as {"alpha": 0.5}.
            operator, operator_options, proposals: for regions, as `RegionClassifier` takes operator, options and
                proposals. None proposes nothing.
            coverage: a token is an example for pixels if its class covers at least this share of it (0..1).
            tokens: at most so many are taken of an image and class.
            guided: for whole images: so many of the likeliest classes are ranked anew by crops, each where the dense
                map of its words has it (GC-CLIP); `regions` of the result are the boxes. None looks once. presence of a
                class is likewise told by that map, where background words compete: one that is nowhere in the image
                gets no probability.

        Raises:
            ModelError: the model cannot be loaded, is no CLIP or lacks what the head trains.
            RecipeError: a recipe whose features depend on the words.
            OptionError: a value that a setting cannot have.
        """
        self.level, self.head = level, head
        self.settings = {**OWN.get(level, {}).get(head, {}), **(options or {})}
        if text is not None and not (text.one_row and text.parents == "none"):
            told = "a transform that reads the photo" if text.needs_features else "template_weights or parents"
            raise OptionError(
                f"{told}: whole images and few-shot heads have one row a class for all images; of text take "
                "descriptors, or a transform that reads no image"
            )
        refinement.parse(refine, upsampling=False)
        self.segmenter = Segmenter(
            model,
            recipe,
            weights=weights,
            templates=templates,
            text=text,
            background=background,
            presence=presence,
            protocol=protocol,
            proxy=proxy,
            proxy_scope=proxy_scope,
            sam=sam,
            refine=refine,
            device=device,
            precision=precision,
            compat=compat,
            use_cache=use_cache,
        )
        self.backbone = self.segmenter.backbone
        if head == "prompt" and text is not None and text != TextOptions():
            raise OptionError("head 'prompt' says names in contexts of its own; leave descriptors and transform out")
        if head == "prompt" and level != "image" and self.settings.get("views"):
            raise OptionError(f"views are other looks at whole images, and this is level '{level}'; leave them out")
        if head == "prompt" and level != "image" and self.settings.get("vision"):
            raise OptionError(
                f"vision is for level 'image', not '{level}', whose places are read by recipes; leave it out"
            )
        if head == "prompt" and level == "pixel" and self.settings.get("conditioned"):
            raise OptionError(
                "conditioned gives every feature rows of its own, and a photo has thousands of places: each would be a "
                "pass of the text tower; take level 'image' or 'region', or leave conditioned out"
            )
        for name, value in (("operator", operator), ("operator_options", operator_options), ("proposals", proposals)):
            if value is not None and level != "region":
                raise OptionError(f"{name} is for level 'region', not '{level}'; leave one of them out")
        if guided is not None and level != "image":
            raise OptionError(f"guided is for level 'image', not '{level}'; leave one of them out")
        self.guided = guided
        self.has_words = self.segmenter.recipe is not None
        if not self.has_words and (guided, presence if level == "image" else None) != (None, None):
            raise ModelError(f"model '{self.backbone.name}' has no words for places, by which guided and presence look")
        if not self.has_words and not (level == "image" and head in WORDLESS):
            raise ModelError(
                f"model '{self.backbone.name}' is no CLIP whose patches a recipe reads, and examples and words are "
                "compared there: take one (--model ViT-B-16/openai), or 'mini' for drawings. Without one, words find "
                f"things in photos (densevl segment), and examples name whole images (head {' or '.join(WORDLESS)})"
            )
        self._projection = projection_of(self.backbone) if head == "prolip" else None
        self._build()  # impossible settings fail before the first example
        self.coverage, self.tokens = coverage, tokens
        self.features = self._look(operator, operator_options, proposals)
        self.labels = self.guessed = None
        self.heads = {}
        self.counts = Counter()
        self.pictures = frozenset()
        self.calibration = Calibration()

    @hearing
    def __call__(
        self, image: Any, labels: Labels | None = None, **regions: Any
    ) -> Classification | RegionResult | SegmentationResult:
        """Name an image, regions of it, or every pixel.

        Args:
            image: path, PIL image, numpy (H, W, 3) uint8 RGB, or torch (3, H, W).
            labels: the classes, for whole images without any examples: words alone (zero-shot).
            regions: for level "region" one of regions, boxes, rle and points, as `RegionClassifier` takes them;
                without, the proposer finds some. For level "image" boxes, x0, y0, x1, y1 in pixels, right and bottom
                exclusive, each of which is judged as an image of its own.

        Returns:
            For images a `Classification`; for regions a `RegionResult`; for pixels a `SegmentationResult`, made as
            `Segmenter` does, with the head in place of text scores.

        Raises:
            ModelError: nothing fitted.
            OptionError: regions or labels for another level.
            ImageError: unreadable.
            ProposalError: regions or boxes that do not fit.
            LabelError: unusable labels.
        """
        asked, features = self._asked(labels), self.features
        if isinstance(features, RegionFeatures):
            return named_regions(self, features, image, regions, read_image(image))
        other = sorted(set(regions) - ({"boxes"} if isinstance(features, ImageFeatures) else set()))
        if other:
            raise OptionError(f"{other[0]}= is for level 'region', and this was made with level '{self.level}'")
        if isinstance(features, PixelFeatures):
            return segmented(self, image, features.encode(image))
        boxes = regions.get("boxes")
        return next(classified(self, [(image, read_image(image))], asked, () if boxes is None else boxes))

    def many(
        self,
        images: Iterable[Any],
        labels: Labels | None = None,
        *,
        batch: int | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[Classification | RegionResult | SegmentationResult]:
        """Name many images, in order, as a call names each; whole images go through the tower together.

        Args:
            images: as a call takes them; they are read ahead by a thread. labels: as for a call, for all of them.
            batch: at most so many whole images share a pass; None takes as many as the device runs fastest.
            on_error: called with an image that cannot be read, and the error, in its place; None raises there.

        Raises:
            ImageError: from the iterator, at the place of an image that cannot be read. Else as a call.
        """
        asked, features = self._asked(labels), self.features
        batch_size(batch, self.backbone.device, 1)  # an impossible one fails at once
        if isinstance(features, RegionFeatures):
            return one_by_one(
                images, read_image, lambda image, rgb: named_regions(self, features, image, {}, rgb), on_error=on_error
            )
        if isinstance(features, PixelFeatures):
            return one_by_one(
                images,
                lambda image: image if isinstance(image, Encoded) else read_image(image),
                lambda image, read: segmented(self, image, features.encode(read)),
                on_error=on_error,
            )
        share = 1 / batch_size(batch, self.backbone.device, features.pixels)
        return many(
            images, read_image, partial(classified, self, asked=asked), share=lambda rgb: share, on_error=on_error
        )

    def _asked(self, labels: Labels | None) -> LabelSet | None:
        """The labels of words alone; None where something was fitted.

        Raises:
            ModelError: nothing was fitted, and there are no labels.
            OptionError: labels that cannot be.
        """
        if labels is None:
            self.fitted()
            return None
        if self.heads or self.level != "image":
            why = "the classes are those that were fitted" if self.heads else "words alone are for level 'image'"
            use = {"region": "; RegionClassifier names regions by them", "pixel": "; Segmenter labels pixels by them"}
            raise OptionError(f"labels are left out: {why}{'' if self.heads else use[self.level]}")
        if not self.has_words:
            raise ModelError(f"model '{self.backbone.name}' is no CLIP: it has no words for whole images; take one")
        return LabelSet.parse(labels)

    def encode(self, image: Any) -> Encoded:
        """A photo as the model sees it, for level "pixel": `fit` and a call take it in place of the photo, at once.

        Args:
            image: as a call takes it.

        Raises:
            OptionError: another level.
            ImageError: unreadable.
        """
        return self._places().encode(image)

    def show(self, image: Any, label_map: Any, names: Sequence[str]) -> Shown:
        """What an example of level "pixel" shows; `fit` takes it in place of the example, and reads nothing anew.

        Args:
            image, label_map, names: as `fit` takes them.

        Raises:
            OptionError: another level. ImageError, ProposalError: as `fit`.
        """
        return self._places().show(image, label_map, names)

    def _places(self) -> PixelFeatures:
        if not isinstance(self.features, PixelFeatures):
            raise OptionError(f"this is for level 'pixel', and this `FewShot` was made with level '{self.level}'")
        return self.features

    def adapted(self) -> Backbone:
        """The model with the projection that head "prolip" trained; any words can be asked of it, in any pipeline.

        Raises:
            ModelError: another head, or nothing fitted.
        """
        self.fitted()
        (head,) = self.heads.values() if self.head == "prolip" else [None]
        if head is None:
            raise ModelError(f"head '{self.head}' leaves the model as it is; 'prolip' trains its projection")
        return with_projection(self.backbone, head.projection)  # type: ignore[attr-defined]

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write what was learned as PATH.safetensors and PATH.json; the model stays where it is.

        Raises:
            ModelError: nothing fitted.
            OutputError: the disk refuses.
        """
        self.fitted()
        return fewshot_files.save(Path(path), self)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: str | Backbone | None = None,
        *,
        recipe: str | Recipe | None = None,
        proxy: Borrowed = None,
        **given: Any,
    ) -> Self:
        """Read what `save` wrote.

        Args:
            path: with or without an ending. model: None loads the one it was fitted with, by name. recipe, proxy:
                likewise. given: proposals, refine, weights, device and use_cache, as the constructor takes them.

        Raises:
            WeightsError: damaged files, or a model, recipe or proxy that is not the one it was fitted with.
            ModelError: the model cannot be loaded.
        """
        return fewshot_files.load(cls, path, model, recipe, proxy, given)

    def _look(self, operator: Any, options: Any, proposals: Any) -> ImageFeatures | RegionFeatures | PixelFeatures:
        """Where features come from; for "prolip" they are those before the projection."""
        encoder = self.backbone
        if self._projection is not None:
            encoder = with_projection(encoder, torch.eye(len(self._projection)))
        if self.level == "image":
            return ImageFeatures(encoder)
        if self.level == "pixel":
            return PixelFeatures(self.segmenter, encoder, self.coverage, self.tokens)
        one = self.head in ("prolip", "prompt")
        return region_features(self.segmenter, encoder, operator, options, proposals, one=one)
