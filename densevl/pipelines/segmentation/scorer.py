"""`PhotoScorer`: a model and its recipe score photos, in passes of one photo or of several."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from densevl import __version__, fitted
from densevl.backbones import Backbone, InferenceProtocol
from densevl.backbones.proxies import DinoiserHeads
from densevl.errors import LabelError, OptionError, RecipeError
from densevl.images import read_image
from densevl.images.depth import used_bits
from densevl.inference import WindowGrid, window_scores
from densevl.inference.kinds import levelled
from densevl.inference.sliding import token_scores
from densevl.inference.views import Views, view_scores
from densevl.pipelines.borrowing import Lender
from densevl.pipelines.feeding import fed_size, feed
from densevl.pipelines.many import batch_size
from densevl.pipelines.segmentation import refinement
from densevl.pipelines.segmentation.bank import Banks
from densevl.pipelines.segmentation.evidence import Evidence, Prepared
from densevl.pipelines.segmentation.foreground import objects
from densevl.pipelines.segmentation.segments import Proposer, Segments
from densevl.pipelines.segmentation.upsampling import Heard, Upsampling
from densevl.pipelines.segmentation.words import Words
from densevl.recipes import Hints, Recipe
from densevl.recipes.features import DenseFeatures
from densevl.refine import segment_by_affinity
from densevl.regions.operators.dense import has_features, token_means
from densevl.vocabulary import NOTHING, Background, LabelSet
from densevl.vocabulary.prompts import Prompt
from densevl.vocabulary.text_classifier import TextEmbeddings

BackgroundSpec = str | float | Sequence[str] | Background | None

REPORTED = ("torch", "open_clip_torch", "timm")


class PhotoScorer:
    """The part of `Segmenter` that scores photos, before anything is decided.

    Attributes: settings of `Segmenter`, loaded and resolved; see its constructor. words: embeds labels.
    """

    backbone: Backbone
    recipe: Recipe | None
    compat: bool
    protocol: InferenceProtocol
    background: Background
    presence: float | None
    proxy: Lender | None
    proxy_scope: str
    sam: Lender | None
    views: Views | None
    refine: tuple[str, ...]
    upsampling: Upsampling | None
    banks: Banks | None
    words: Words
    _proposals: Any
    _proposer: Proposer | None

    def segments(self, rgb: np.ndarray, given: Any = None) -> Segments | None:
        """Return a photo's segments: those given, else proposed, else clusters if the recipe has them, else None.

        Raises:
            ProposalError: If the regions are unusable.
            RecipeError: If there are none and the recipe or a refinement needs them.
        """
        if given is not None:
            return Segments.parse(given, rgb.shape[:2])
        recipe = self.recipe
        needs_some = recipe is not None and bool(recipe.reads & {"regions", "masks"})
        reads = next((name for name in self.refine if name in refinement.READ_SEGMENTS), None)
        if not needs_some and reads is None and self.banks is None:
            return None
        if self._proposer is None and recipe is not None and recipe.clusters and self.banks is None:
            return self._clusters(rgb)
        if self._proposer is None:
            who = f"recipe '{recipe.name}'" if recipe is not None and needs_some else f"refine '{reads}'"
            who = who if needs_some or self.banks is None else "a bank"
            raise RecipeError(
                f"{who} needs segments of the photo: give each call regions=, an (H, W) integer map or (M, H, W) "
                "masks, or find them with proposals='felzenszwalb' or 'superpixels', or 'mini-sam' for drawings "
                "(--proposals)"
            )
        return Segments.parse(self._proposer(rgb), rgb.shape[:2], proposed=True)

    @torch.no_grad()
    def _clusters(self, rgb: np.ndarray) -> Segments | None:
        """Cluster patches of the whole photo, at the model's own size, by the recipe's affinity."""
        side = min(self.backbone.picture_size)
        pixels, _ = feed(rgb, self.backbone, replace(self.protocol, short_side=side, crop=None, stride=None))
        dense = self.backbone.encode_dense(pixels, self.recipe)
        if dense.affinity is None:
            return None
        ids = segment_by_affinity(dense.affinity[0], dense.grid, (rgb.shape[0], rgb.shape[1]))
        return Segments(ids.cpu() + 1, clustered=True)

    def look(self, rgb: np.ndarray, labels: LabelSet, policy: Background, segments: Segments | None) -> Evidence:
        """Score a uint8 RGB photo with the model and its recipe, at every view. Nothing is decided yet."""
        text, heard = self.words.for_photo(rgb, labels, policy), Heard()
        foreground_T = text.classes != NOTHING
        tell = heard if self.upsampling is not None else None
        scores, windows = self.project(rgb, text.vectors, segments, foreground_T, text.prompts, tell)
        if self.banks is not None and segments is not None:
            words = self.words
            texts = [
                text.vectors if one is words.classifier else words.embedded(one, labels, policy).vectors
                for one in words.of_banks
            ]
            scores = self.banks.mix(scores, windows, rgb, segments, texts)
        if self.upsampling is not None:
            scale = 1.0 if self.views is None else self.views.scales[0]
            pixels, _ = feed(rgb, self.backbone, self.protocol, scale)
            scores, windows = self.upsampling(scores, windows, heard, text, pixels)
        scores = levelled(scores, text)
        return self._evidence(scores, windows, text, rgb, policy, segments)

    def project(
        self,
        rgb: np.ndarray,
        rows_TD: torch.Tensor,
        segments: Segments | None,
        foreground_T: torch.Tensor | None = None,
        prompts_MTD: torch.Tensor | None = None,
        tell: Callable[[DenseFeatures], None] | None = None,
    ) -> tuple[torch.Tensor, WindowGrid]:
        """Score a uint8 RGB photo against rows of the joint space at every view: (1, Y, X, T) float32, with its grid.

        Args:
            foreground_T: (T,) bool, True for classes and False for background words; None means all are classes.
            prompts_MTD: see `token_scores`.
            tell: receives the features of the first view; see `window_scores`.
        """
        first_view = [tell]

        def score(pixels: torch.Tensor, windows: WindowGrid, hints: Hints) -> tuple[torch.Tensor, WindowGrid]:
            return window_scores(
                self.backbone,
                pixels,
                rows_TD,
                windows,
                recipe=self.recipe,
                hints=hints,
                proxy_scope=self.proxy_scope,
                foreground_T=foreground_T,
                prompts_MTD=prompts_MTD,
                tell=first_view.pop() if first_view else None,
            )

        hints = self._hints(segments, rgb)
        if self.views is None:
            return score(*feed(rgb, self.backbone, self.protocol), hints)
        return view_scores(score, partial(feed, rgb, self.backbone, self.protocol), self.views, hints)

    @property
    def separable(self) -> bool:
        """Whether windows of several photos may share a pass of the tower, with `prepare`, `run` and `gather`.

        False if the recipe reads something of its photo or joins its windows, and with views, banks, upsamplers or
        words fitted to the image.
        """
        recipe = self.recipe
        alone = recipe is None or not (recipe.reads or recipe.stitch or recipe.spread)
        own = (self.views, self.banks, self.upsampling)
        return alone and own == (None, None, None) and not self.words.classifier.options.needs_image

    def prepare(self, image: Any) -> Prepared:
        """Read a photo, resize it and place its windows. The model does not run.

        Raises:
            ImageError: If the image is unreadable.
            RecipeError: If this segmenter is not `separable`.
        """
        if not self.separable:
            raise RecipeError(
                "windows of several photos cannot share a pass with this recipe, views, banks or text options"
            )
        rgb = read_image(image)
        pixels, windows = feed(rgb, self.backbone, self.protocol)
        return Prepared(rgb, windows, pixels)

    @torch.no_grad()
    def looks(
        self,
        photos: Sequence[np.ndarray | Prepared],
        labels: LabelSet,
        policy: Background,
        *,
        batch: int | None = None,
    ) -> list[tuple[Evidence, Segments | None]]:
        """Return what `look` gives for each photo, with its segments. Windows of equal size share a pass.

        Args:
            photos: uint8 RGB (H, W, 3), or prepared. batch: windows per pass of a single photo; None suits the device.
        """
        rgbs = [photo.rgb if isinstance(photo, Prepared) else photo for photo in photos]
        segments = [self.segments(rgb) for rgb in rgbs]
        if not self.separable:
            return [(self.look(rgb, labels, policy, own), own) for rgb, own in zip(rgbs, segments, strict=True)]
        found: dict[int, Evidence] = {}
        alike: dict[tuple[int, int], list[tuple[int, Prepared]]] = {}
        for index, photo in enumerate(photos):
            prepared = photo if isinstance(photo, Prepared) else self.prepare(photo)
            alike.setdefault(prepared.windows.window, []).append((index, prepared))
        for together in alike.values():
            if len(together) == 1:
                index, prepared = together[0]
                found[index] = self._alone(prepared, labels, policy, batch)
                continue
            dense, start = self.run(torch.cat([prepared.parts for _, prepared in together])), 0
            for index, prepared in together:
                own = slice(start, start + len(prepared.windows))
                found[index], start = self.gather(prepared, dense.part(own), labels, policy), own.stop
        return [(found[index], own) for index, own in enumerate(segments)]

    def _alone(self, prepared: Prepared, labels: LabelSet, policy: Background, batch: int | None) -> Evidence:
        """Score a photo in its own passes."""
        text, windows = self.words.for_photo(prepared.rgb, labels, policy), prepared.windows
        size = batch_size(batch, self.backbone.device, math.prod(windows.window))
        parts = windows.batches(prepared.pixels, size)
        return self._laid(torch.cat([self.score(self.run(part), text) for part in parts]), windows, text)

    def share(self, photo: np.ndarray | Prepared, batch: int | None = None) -> float:
        """Return the share of a pass that a photo's windows (uint8 RGB or prepared) take; 1 if it is not shared."""
        if not self.separable:
            return 1.0
        if isinstance(photo, Prepared):
            windows = photo.windows
        else:
            size = fed_size((photo.shape[0], photo.shape[1]), self.protocol, self.backbone.patch_size)
            own = self.protocol
            windows = WindowGrid.place(*size, own.crop, own.stride, self.backbone.patch_size, own.blend)
        return len(windows) / batch_size(batch, self.backbone.device, math.prod(windows.window))

    def run(self, parts: torch.Tensor) -> DenseFeatures:
        """Run windows (n, 3, h, w) of any photos through the tower in one pass. All have the same size."""
        return self.backbone.encode_dense(parts, self.recipe)

    def score(self, dense: DenseFeatures, text: TextEmbeddings) -> torch.Tensor:
        """Score the texts at every token of a pass: (B, h, w, T)."""
        return token_scores(self.backbone, dense, text.vectors, text.classes != NOTHING, text.prompts)

    def gather(self, prepared: Prepared, dense: DenseFeatures, labels: LabelSet, policy: Background) -> Evidence:
        """Score what `run` returned for one photo's windows, in order. The result is that of `look`.

        Args:
            dense: features of all windows of the photo; `DenseFeatures.part` cuts them out of a larger pass.
        """
        text = self.words.for_photo(prepared.rgb, labels, policy)
        return self._laid(self.score(dense, text), prepared.windows, text)

    def _laid(self, scores: torch.Tensor, windows: WindowGrid, text: TextEmbeddings) -> Evidence:
        windows = windows.with_tokens(*scores.shape[1:3])
        return Evidence(levelled(windows.assemble(scores, 1), text), windows, text)

    def policy(self, background: BackgroundSpec = "auto") -> Background:
        """Return the background policy of a call: the segmenter's own for "auto".

        Raises:
            OptionError: If it is unusable.
        """
        same = isinstance(background, str) and background == "auto"
        return self.background if same else self._require_heads(self._policy(background))

    def _require_heads(self, policy: Background) -> Background:
        if policy.foreground and getattr(self.backbone, "tower", None) is None:
            raise OptionError(
                f"background 'foreground' reads the image tower of a CLIP, which model '{self.backbone.name}' lacks"
            )
        if policy.foreground and not isinstance(self.proxy, DinoiserHeads):
            raise OptionError(
                "background 'foreground' needs the heads of CLIP-DINOiser: take recipe 'dinoiser' with their file as "
                "its proxy"
            )
        return policy

    def _policy(self, background: BackgroundSpec) -> Background:
        default = Background.parse(self.backbone.background)
        if isinstance(background, str) and background == "auto":
            return default
        policy = Background.parse(background)
        # Words and a threshold are added to the model's own "none of these", if it has one: the model may not know the
        # words, and with few classes it is always sure of the best one.
        asked = bool(policy.words or policy.scenes) or policy.threshold > 0
        return replace(policy, unknown=policy.unknown or (asked and default.unknown))

    @property
    def _pools(self) -> bool:
        """Whether the recipe reads only segments, so that there is nothing outside of them."""
        return self.recipe is not None and "masks" in self.recipe.reads

    def _evidence(
        self,
        scores: torch.Tensor,
        windows: WindowGrid,
        text: TextEmbeddings,
        rgb: np.ndarray,
        policy: Background,
        segments: Segments | None,
    ) -> Evidence:
        """Return the scores with the pixels they apply to."""
        seen = segments.ids > 0 if self._pools and segments is not None else None
        found = Evidence(scores, windows, text, seen)
        if not policy.foreground:
            return found
        pixels, laid = feed(rgb, self.backbone, self.protocol)
        heads: Any = self.proxy
        parts = [heads.foreground(self.backbone.tower, part) for part in laid.batches(pixels, 1)]  # type: ignore[attr-defined]
        front = laid.with_tokens(*parts[0].shape[1:]).assemble(torch.cat(parts)[..., None], 1)
        return found.within(objects(front, scores, windows, text.classes, (rgb.shape[0], rgb.shape[1])))

    def _hints(self, segments: Segments | None, rgb: np.ndarray) -> Hints:
        """Collect what the recipe reads besides the photo. Segments are at the size the photo is fed."""
        reads = self.recipe.reads if self.recipe is not None else frozenset()
        hints = Hints(proxy=self.proxy if "proxy" in reads else None, sam=self.sam)
        if segments is None or self.recipe is None:
            return hints
        size = fed_size((rgb.shape[0], rgb.shape[1]), self.protocol, self.backbone.patch_size)
        return segments.hints(hints, self.recipe.reads, size, self.backbone.device)

    @property
    def _method(self) -> str:
        return self.recipe.name if self.recipe is not None else self.backbone.name

    @torch.no_grad()
    def _whole(self, rgb: np.ndarray) -> torch.Tensor:
        """Return dense features (D, h, w) of a photo in one window, not normalised."""
        if not has_features(self.recipe) or self.recipe is None:
            what = f"recipe or model '{self._method}'"
            raise RecipeError(f"{what} has no features for a text transform that reads the photo; take recipe sclip")
        pixels, _ = feed(rgb, self.backbone, replace(self.protocol, crop=None, stride=None))
        hints = self.backbone.look(pixels, self.recipe, self._hints(None, rgb))
        return self.backbone.encode_dense(pixels, self.recipe, hints=hints).features[0].float()

    @torch.no_grad()
    def _pooled(self, prompt: Prompt) -> torch.Tensor:
        """Return the mean unit feature (D,) of a part of an image, with this recipe and these windows."""
        if not has_features(self.recipe):
            what = f"recipe or model '{self._method}'"
            raise LabelError(f"{what} scores words and has no vector for a part of an image; take recipe sclip")
        masks = prompt.region
        axes = torch.eye(self.backbone.embed_dim, device=self.backbone.device)
        tokens, grid = self.project(prompt.content, axes, Segments.parse(masks, masks.size))
        return token_means(tokens[0], grid, masks)[0]

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompt templates."""
        return self.words.classifier.templates

    def embed_text(self, labels: LabelSet, policy: Background) -> TextEmbeddings:
        """Embed labels and background words as unit vectors. The last few vocabularies are cached."""
        return self.words.embed(labels, policy)

    def facts(self) -> dict[str, Any]:
        """Return everything that affects a result besides the photo, its segments and the labels, ready for JSON."""
        text = self.words.classifier
        return {
            "densevl": __version__,
            "model": self.backbone.name,
            "reading": dict(self.backbone.reading),
            "weights": fitted.fingerprint(self.backbone),
            "text_side": self.backbone.text_fingerprint,
            "recipe": repr(self.recipe) if self.recipe else None,
            "compat": self.compat,
            "precision": self.backbone.precision,
            "protocol": asdict(self.protocol),
            "templates": list(text.templates),
            "text": text.options.identity(),
            "background": asdict(self.background),
            "presence": self.presence,
            "proxy": fitted.identity(self.proxy),
            "proxy_scope": self.proxy_scope if self.proxy is not None else None,
            "sam": fitted.identity(self.sam),
            "proposals": self._proposals,
            "views": asdict(self.views) if self.views is not None else None,
            "refine": list(self.refine),
            "upsampler": fitted.identity(self.upsampling.upsampler) if self.upsampling is not None else None,
            "banks": self.banks.facts() if self.banks is not None else None,
            "bits": used_bits(),
        }

    def meta(
        self,
        image: Any,
        policy: Background,
        absent: Sequence[str] = (),
        segments: Segments | None = None,
        seconds: float = 0.0,
    ) -> dict[str, Any]:
        """Return the metadata of a result: what it was made with."""
        return {
            "versions": {"densevl": __version__, **_versions()},
            "image": os.fspath(image) if isinstance(image, (str, os.PathLike)) else None,
            "model": self.backbone.name,
            "reading": dict(self.backbone.reading),
            "recipe": repr(self.recipe) if self.recipe else None,
            "compat": self.compat,
            "proxy": self.proxy.name if self.proxy is not None else None,
            "proxy_scope": self.proxy_scope if self.proxy is not None else None,
            "sam": self.sam.name if self.sam is not None else None,
            "templates": list(self.words.classifier.templates),
            "text": self.words.classifier.options.facts(),
            "text_fingerprint": self.backbone.text_fingerprint,
            "device": str(self.backbone.device),
            "precision": self.backbone.precision,
            "protocol": asdict(self.protocol),
            "background": str(policy),
            "presence": self.presence,
            "absent": list(absent),
            "regions": len(segments) if segments is not None else None,
            "views": asdict(self.views) if self.views is not None else None,
            "refine": ",".join(self.refine) or None,
            "upsampler": self.upsampling.upsampler.kind if self.upsampling is not None else None,
            "banks": self.banks.facts() if self.banks is not None else None,
            "seconds": round(seconds, 3),
        }


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in REPORTED}
