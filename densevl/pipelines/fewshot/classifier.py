"""`FewShot`: classify images, regions or pixels by words and a few examples."""

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
from densevl.files import target_of
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
    # Pixels give many features, and those of one image are similar: a ridge that does not fade, centres for all keys.
    "pixel": {"gda": {"floor": 0.1}, "tip": {"keep": 64}, "tipx": {"keep": 64}, "ape": {"keep": 64}}
}
"""Settings of heads whose defaults differ for a level."""
WORDLESS = ("exemplars", "nearest")
"""Heads that need no words if all classes have examples."""


class FewShot(Learner):
    """Classify images, regions or pixels by words and a few examples. Classes without examples are judged by words.

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
                device, precision, compat, use_cache: as for `Segmenter`. Background words compete as classes without
                examples, except for whole images. `text` may have descriptors and a transform that reads no image.
            head: "gda", "tip", "tipx", "ape", "nearest", "exemplars", "linear", "adapter", "prolip" or "prompt"; see
                `densevl.fewshot`.
                `densevl.fewshot`.
            level: "image", "region" or "pixel": what examples are, and what is named.
            options: settings of the head, such as {"alpha": 0.5}.
            operator, operator_options, proposals: for regions, as for `RegionClassifier` (operator, options and
                proposals). None proposes nothing.
            coverage: a token is an example for pixels if its class covers at least this share of it (0..1).
            tokens: maximum number of tokens taken per image and class.
            guided: for whole images: rank this many of the likeliest classes again by crops, cut where the dense map of
                the words shows each class (GC-CLIP). The result's `regions` are the crops' boxes. None does not. With
                `presence`, that map also decides which classes are present, and background words compete in it: an
                absent class gets no probability.

        Raises:
            ModelError: If the model cannot be loaded, is not a CLIP, or lacks what the head trains.
            RecipeError: If the recipe's features depend on the words.
            OptionError: If a setting has a value it does not accept.
        """
        self.level, self.head = level, head
        self.settings = {**OWN.get(level, {}).get(head, {}), **(options or {})}
        if text is not None and not (text.one_row and text.parents == "none"):
            named = "a transform that reads the photo" if text.needs_features else "template_weights or parents"
            raise OptionError(
                f"{named}: whole images and few-shot heads use one row per class for all images; of text take only "
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
            raise OptionError(
                "head 'prompt' learns its own contexts for the names; leave descriptors and transform out"
            )
        if head == "prompt" and level != "image" and self.settings.get("views"):
            raise OptionError(f"views are for whole images, and this is level '{level}'; leave them out")
        if head == "prompt" and level != "image" and self.settings.get("vision"):
            raise OptionError(
                f"vision is for level 'image', not '{level}', whose places are read by recipes; leave it out"
            )
        if head == "prompt" and level == "pixel" and self.settings.get("conditioned"):
            raise OptionError(
                "conditioned computes rows for each feature, and a photo has thousands of places, each a pass of the "
                "text tower; take level 'image' or 'region', or leave conditioned out"
            )
        for name, value in (("operator", operator), ("operator_options", operator_options), ("proposals", proposals)):
            if value is not None and level != "region":
                raise OptionError(f"{name} is for level 'region', not '{level}'; leave one of them out")
        if guided is not None and level != "image":
            raise OptionError(f"guided is for level 'image', not '{level}'; leave one of them out")
        self.guided = guided
        self.has_words = self.segmenter.recipe is not None
        if not self.has_words and (guided, presence if level == "image" else None) != (None, None):
            raise ModelError(
                f"model '{self.backbone.name}' cannot compare places with words, as guided and presence need"
            )
        if not self.has_words and not (level == "image" and head in WORDLESS):
            raise ModelError(
                f"model '{self.backbone.name}' is not a CLIP whose patches a recipe reads, which this level or head "
                "needs: take one (--model ViT-B-16/openai), or 'mini' for drawings. Without one, words find things in "
                f"photos (densevl segment), and examples name whole images (head {' or '.join(WORDLESS)})"
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
        """Classify an image, regions of it, or every pixel.

        Args:
            image: path, PIL image, numpy (H, W, 3) uint8 RGB, or torch (3, H, W).
            labels: the classes, for whole images by words alone (zero-shot), without any examples.
            regions: for level "region" one of regions, boxes, rle and points, as for `RegionClassifier`; without them
                the proposer finds regions. For level "image" boxes, x0, y0, x1, y1 in pixels, right and bottom
                exclusive, each judged as an image of its own.

        Returns:
            A `Classification` for images, a `RegionResult` for regions, and a `SegmentationResult` for pixels, made as
            by `Segmenter`, with the head's scores in place of text scores.

        Raises:
            ModelError: If nothing was fitted.
            OptionError: If regions or labels are for another level.
            ImageError: If the image is unreadable.
            ProposalError: If regions or boxes do not fit.
            LabelError: If the labels are unusable.
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
        """Classify many images, in order, as a call does for each. Whole images share passes of the tower.

        Args:
            images: any that a call accepts; a thread reads them ahead. labels: as for a call, for all images.
            batch: maximum number of whole images per pass; None takes what the device runs fastest.
            on_error: called with an image that cannot be read and the error, in its place; None raises there.

        Raises:
            ImageError: From the iterator, in the place of an unreadable image. Other errors are raised as by a call.
        """
        asked, features = self._asked(labels), self.features
        batch_size(batch, self.backbone.device, 1)  # a bad value fails at once
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
        """Return the labels for classification by words alone; None if something was fitted.

        Raises:
            ModelError: If nothing was fitted, and there are no labels.
            OptionError: If labels cannot be given here.
        """
        if labels is None:
            self.fitted()
            return None
        if self.heads or self.level != "image":
            why = "the classes are the fitted ones" if self.heads else "words alone are for level 'image'"
            other = {"region": "; use RegionClassifier for regions", "pixel": "; use Segmenter for pixels"}
            raise OptionError(f"leave labels out: {why}{'' if self.heads else other[self.level]}")
        if not self.has_words:
            raise ModelError(
                f"model '{self.backbone.name}' is not a CLIP: it cannot compare whole images with words; take one"
            )
        return LabelSet.parse(labels)

    def encode(self, image: Any) -> Encoded:
        """Encode a photo for level "pixel". `fit` and calls accept the result in place of the photo.

        Args:
            image: any that a call accepts.

        Raises:
            OptionError: At another level.
            ImageError: If the image is unreadable.
        """
        return self._places().encode(image)

    def show(self, image: Any, label_map: Any, names: Sequence[str]) -> Shown:
        """Encode an example of level "pixel". `fit` accepts the result in place of the example.

        Args:
            image, label_map, names: as for `fit`.

        Raises:
            OptionError: At another level.
            ImageError, ProposalError: As for `fit`.
        """
        return self._places().show(image, label_map, names)

    def _places(self) -> PixelFeatures:
        if not isinstance(self.features, PixelFeatures):
            raise OptionError(f"this is for level 'pixel', and this `FewShot` was made with level '{self.level}'")
        return self.features

    def adapted(self) -> Backbone:
        """Return the model with the projection trained by head "prolip". Any pipeline can use it with any words.

        Raises:
            ModelError: If the head is another one, or nothing was fitted.
        """
        self.fitted()
        (head,) = self.heads.values() if self.head == "prolip" else [None]
        if head is None:
            raise ModelError(f"head '{self.head}' leaves the model as it is; 'prolip' trains its projection")
        return with_projection(self.backbone, head.projection)  # type: ignore[attr-defined]

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Write what was learned as PATH.safetensors and PATH.json, without the model.

        Args:
            overwrite: allow replacing files that densevl did not write.

        Raises:
            ModelError: If nothing was fitted.
            OutputError: If a file was not written by densevl, or the files cannot be written.
        """
        self.fitted()
        return fewshot_files.save(target_of(path), self, overwrite=overwrite)

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
            path: with or without an extension. model: None loads the one it was fitted with, by name. recipe, proxy:
                the same. given: proposals, refine, weights, device and use_cache, as for the constructor.

        Raises:
            WeightsError: If files are damaged, or the model, recipe or proxy is not the one it was fitted with.
            ModelError: If the model cannot be loaded.
        """
        return fewshot_files.load(cls, path, model, recipe, proxy, given)

    def _look(self, operator: Any, options: Any, proposals: Any) -> ImageFeatures | RegionFeatures | PixelFeatures:
        """Return the source of features. For "prolip" they are taken before the projection."""
        encoder = self.backbone
        if self._projection is not None:
            encoder = with_projection(encoder, torch.eye(len(self._projection)))
        if self.level == "image":
            return ImageFeatures(encoder)
        if self.level == "pixel":
            return PixelFeatures(self.segmenter, encoder, self.coverage, self.tokens)
        one = self.head in ("prolip", "prompt")
        return region_features(self.segmenter, encoder, operator, options, proposals, one=one)
