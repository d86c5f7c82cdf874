"""`Segmenter`: from a photo and words to a label map."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densevl import fitted
from densevl.backbones import Backbone, InferenceProtocol
from densevl.errors import OptionError, RecipeError
from densevl.images import read_image
from densevl.inference import WindowGrid, class_scores, decode
from densevl.inference.decoding import AS_IT_IS, Refine, chances
from densevl.inference.kinds import levelled
from densevl.inference.views import Views
from densevl.kernels import DecodePlan
from densevl.pipelines import remarks
from densevl.pipelines.borrowing import Borrowed, borrow
from densevl.pipelines.feeding import patch_grid, settle
from densevl.pipelines.many import OnError, batch_size, hearing, many
from densevl.pipelines.segmentation import refinement
from densevl.pipelines.segmentation.bank import NEIGHBOURS, SHARE, Banks, BankSpec
from densevl.pipelines.segmentation.boxes import ClassBoxes
from densevl.pipelines.segmentation.evidence import Evidence, Prepared
from densevl.pipelines.segmentation.looking import BackgroundSpec as BackgroundSpec
from densevl.pipelines.segmentation.looking import Looker
from densevl.pipelines.segmentation.presence import taking_part
from densevl.pipelines.segmentation.segments import Proposer, Segments, proposer
from densevl.pipelines.segmentation.upsampling import upsampling
from densevl.pipelines.segmentation.words import Words
from densevl.pipelines.settings import checked, load
from densevl.recipes import Recipe, get
from densevl.refine.clusters import PAPER_GRID
from densevl.refine.upsampling import Upsampler
from densevl.regions.naming import against
from densevl.regions.operators.dense import has_features
from densevl.results import SegmentationResult
from densevl.vocabulary import NOTHING, Background, LabelSet, TextOptions
from densevl.vocabulary.text_classifier import TextClassifier
from densevl.weights import require_finite

Labels = LabelSet | str | Path | Sequence[Any] | Mapping[str, Any]


<<<<<<< HEAD
class Segmenter(Looker):
    """Open-vocabulary segmentation with one model and one recipe; call it with an image and labels.
=======
class Segmenter:
    """Open-vocabulary segmentation with one model and one recipe. Call it with an image and labels.
>>>>>>> 253a820 (Docstrings of files, settings and segmentation read as plain English)

    Examples:
        >>> segment = Segmenter("auto")
        >>> result = segment("cat.jpg", ["cat", "dog | puppy"])
        >>> result.save("out/cat.png")
    """

    @checked
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
        protocol: InferenceProtocol | Mapping[str, Any] | str | None = None,
        proxy: Borrowed = None,
        proxy_scope: str = "image",
        sam: Borrowed = None,
        proposals: str | Proposer | None = None,
        views: str | Views | None = None,
        refine: str | Sequence[str] | None = None,
        upsampler: str | Path | Upsampler | None = None,
        bank: BankSpec | None = None,
        bank_share: float = SHARE,
        neighbours: int = NEIGHBOURS,
        device: str | None = None,
        precision: str | None = None,
        compat: bool = False,
        use_cache: bool = True,
    ) -> None:
        """Load the model.

        Args:
            model: a name for `load_backbone`, or a loaded `Backbone`.
            recipe: a name from `densevl.recipes.names()` or a `Recipe`; None takes the model's default. For a paper
                with settings per benchmark, use `recipes.get("resclip", benchmark="voc21")`.
            weights: a checkpoint file, if `model` names an architecture or config.
            templates: prompt templates (see `vocabulary.templates`); None takes the model's own.
            text: descriptors, template weights, hierarchies, or a transform of embeddings; None uses none of them.
            background: when a pixel gets no label: "auto" (the model's default), "none", "unknown", "1-max", a
                probability, "foreground" (by CLIP-DINOiser's heads), words that compete, or a list such as "voc"; see
                `Background.parse`.
            presence: drop a class that reaches this probability (0..1) at no patch, at the model's own logit scale. It
                is left out before labels are decided and named in `meta["absent"]`; its scores stay. MaskCLIP's prompt
                denoising uses 0.5. None keeps all.
            protocol: resize and windows: an `InferenceProtocol`, a dict of changes to the model's own, or "tiles",
                "sliding" (the papers' half-overlapping windows) or "whole"; None takes the model's own. A recipe that
                stitches windows always blends at patches.
            proxy: the model whose affinity the recipe borrows: a name or path for `load_proxy`, or a `Proxy`; None
                loads the one the recipe was published with. "mini-sam" is in the package.
            proxy_scope: "image" runs the proxy once on the photo; "window" runs it on each window, as the papers do.
            sam: the same for the encoder of SAM, for recipes that spread the whole image by it.
            proposals: proposes segments for photos that are given without: "mini-sam", or a function of the uint8 RGB
                (H, W, 3) that returns anything allowed as a call's `regions`.
            views: score every photo several times and average: "flip", "flip+scale", "itaclip", or `Views`.
            refine: refinements, such as "pamr,vote". First may be a trained upsampler, "anyup", "jbu" or "jafar". Then
                "pamr" (scores flow between pixels of similar colour), "edges" (the same over short distances on a small
                copy, cheaply), "lposs+" (scores are propagated over pixels), "proxy" (scores flow between places that
                look similar to the proxy, CLIPer's last step), or "segments" (scores are mixed with their mean over
                each segment). Last may be "vote": each segment takes its most frequent label. "none" uses none. None is
                the model's own choice; for cliptrase, a vote of its own clusters if the model has at least 14 x 14
                patches.
            upsampler: the file of the upsampler that `refine` names, as published or as safetensors, or the result of
                `refine.upsampling.load_upsampler`.
            bank: folders of banks, or `Bank`s: segments are also scored by similar ones in other photos. Several banks
                are averaged (CorrCLIP v2). Segments must be given or proposed.
            bank_share: weight of the banks against the photo's own scores, 0..1. neighbours: regions looked up for
                each segment.
            device: "cpu" or "cuda"; None chooses.
            precision: of the image tower's linear layers (`backbones.precision`): "float32", "int8", "bfloat16",
                "float16", "float32-packed", or "auto", the fastest here; None keeps that of the backbone.
            compat: run the recipe exactly as its authors published it, with their mistakes; see `densevl recipes show`.
            use_cache: cache text embeddings on disk.

        Raises:
            ModelError, WeightsError, MissingExtraError: If the model, or one it borrows from, cannot be loaded.
            RecipeError: If the recipe or a refinement is unknown, recipes do not apply to the model, or the recipe does
                not use the given `proxy` or `sam`.
            OptionError: If a setting has a value it does not accept.
            ProtocolError: If windows or views are impossible.
            BankError: If a bank is damaged or empty, or was made with other models of that name.
        """
        if text is not None and text.template_weights == "region":
            raise OptionError("template_weights='region' is for regions; for label maps take 'pixel' or 'image'")
        chosen = get(recipe) if recipe is not None else None  # a mistyped recipe fails before the model loads
        asked, self.views = refinement.parse(refine), Views.parse(views)
        self.presence = presence
        self.backbone = load(model, weights, device, precision)
        self.refine = asked
        if refine is None:
            clustered = chosen is not None and chosen.clusters
            voting = (refinement.VOTE,) if min(patch_grid(self.backbone)) >= PAPER_GRID else ()
            self.refine = voting if clustered else refinement.parse(self.backbone.refine)
        if chosen is not None and self.backbone.default_recipe is None:
            raise RecipeError(
                f"model '{self.backbone.name}' has no attention to rewire, so recipe '{chosen.name}' does not apply; "
                "leave the recipe out, or use a CLIP model"
            )
        self.recipe = self.backbone.resolve(chosen, compat=compat)
        self.compat, self.proxy_scope = compat, proxy_scope
        self.protocol = settle(protocol, self.backbone.protocol, self.recipe)
        self.background = self._policy(background)
        refines = frozenset({refinement.PROXY} & set(self.refine))
        self.proxy, self.sam = borrow(self.recipe, proxy, sam, str(self.backbone.device), refines)
        self._require_heads(self.background)
        averaged = self.views is not None or bank is not None
        self.upsampling = upsampling(self.refine, upsampler, self.backbone, self.recipe, averaged=averaged)
        self._proposals, self._proposer = fitted.identity(proposals), proposer(proposals)
        own = TextClassifier(self.backbone, templates, text, use_cache=use_cache, look=self._pooled)
        self.banks: Banks | None = None
        if bank is not None:
            self.banks = Banks(bank, bank_share, neighbours, self.backbone, self.recipe, self.proxy)
        other = None if text is None else text.words_alone  # banks may be of other models
        self.words = Words(
            self.backbone,
            own,
            self._whole,
            [
                own if one is self.backbone else TextClassifier(one, templates, other, use_cache=use_cache)
                for one in (self.banks.backbones if self.banks is not None else ())
            ],
        )

    @hearing
    def __call__(
        self,
        image: Any,
        labels: Labels,
        *,
        background: BackgroundSpec = "auto",
        regions: Any = None,
        boxes: Mapping[str, Any] | None = None,
        keep: bool = False,
    ) -> SegmentationResult:
        """Segment one image.

        Args:
            image: path, PIL image, numpy (H, W, 3) uint8 RGB, or torch (3, H, W); see `densevl.images.read_image`.
            labels: the classes; "car | truck" is two words for one class; see `LabelSet.parse`.
            background: overrides the segmenter's policy for this call.
            regions: segments of the photo, for recipes and refinements that read them: an (H, W) integer map, 0 where
                there is no segment, or (M, H, W) bool masks, the smaller on top where they overlap. A recipe that pools
                over masks (textregion) labels only their pixels.
            boxes: boxes of some classes, by class or synonym: (4,) or (M, 4) x0, y0, x1, y1 in pixels. A class appears
                only inside its boxes and is more likely there. A class without boxes, or with zero boxes (0, 4), may be
                anywhere. If every class has boxes, pixels outside all of them are nothing.
            keep: keep the photo's features with the result, so that `SegmentationResult.reclassify` needs no model.
                They are stored in half precision, and this result is computed from them too.

        Returns:
            Labels (H, W) int16 at the image's own size, -1 for nothing; see `SegmentationResult`. Its scores are
            refined like the labels, except by a vote.

        Raises:
            LabelError: If the labels are unusable, or a box belongs to none of them.
            ImageError: If the image is unreadable.
            ProposalError: If regions or boxes do not fit the photo.
            RecipeError: If the recipe or a refinement needs regions.
            OptionError: If the background is unusable.
        """
        label_set, policy, rgb = LabelSet.parse(labels), self.policy(background), read_image(image)
        started = time.perf_counter()
        boxed = None if boxes is None else ClassBoxes.parse(boxes, label_set, (rgb.shape[0], rgb.shape[1]))
        segments = self.segments(rgb, regions)
        if keep:
            if boxed is not None:
                raise OptionError(
                    "keep=True is for other labels later, and boxes belong to these labels; give one of them"
                )
            return self._again(image, rgb, segments, *self._features(rgb, segments), label_set, background=policy)
        evidence = self.look(rgb, label_set, policy, segments)
        decide = partial(self.decide, rgb=rgb, labels=label_set, policy=policy, segments=segments, image=image)
        if boxed is None:
            return decide(evidence, started=started)
        evidence = evidence.plus(boxed.prior(evidence.windows) / self.protocol.logit_scale)
        if boxed.everywhere is not None and (evidence.text.classes != NOTHING).all():  # nothing else competes outside
            evidence = evidence.within(torch.from_numpy(boxed.everywhere))
        result = decide(evidence, started=started)
        warnings = (*result.warnings, *boxed.warnings(result.labels))
        return replace(result, warnings=warnings, meta={**result.meta, "boxes": dict(boxed.given)})

    def many(
        self,
        images: Iterable[Any],
        labels: Labels,
        *,
        background: BackgroundSpec = "auto",
        batch: int | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[SegmentationResult]:
        """Segment many images, in order. Each result equals that of calling the segmenter with its image.

        A thread reads images ahead. If the recipe allows it (see `separable`), windows of several photos share a pass
        of the tower.

        Args:
            images: any that a call accepts. labels, background: as for a call, for all images.
            batch: maximum number of windows per pass; None takes what the device runs fastest.
            on_error: called with an image that cannot be read and the error, in its place; None raises there.

        Raises:
            ImageError: From the iterator, in the place of an unreadable image. Other errors are raised at once, as by
                a call.
        """
        label_set, policy = LabelSet.parse(labels), self.policy(background)
        batch_size(batch, self.backbone.device, 1)  # a bad value fails at once

        def run(together: list[tuple[Any, np.ndarray | Prepared]]) -> Iterator[SegmentationResult]:
            started = time.perf_counter()
            found = self.looks([photo for _, photo in together], label_set, policy, batch=batch)
            shared = (time.perf_counter() - started) / len(together)
            for (image, photo), (evidence, segments) in zip(together, found, strict=True):
                rgb = photo.rgb if isinstance(photo, Prepared) else photo
                since = time.perf_counter() - shared
                yield self.decide(evidence, rgb, label_set, policy, segments, image=image, started=since)

        read: Callable[[Any], np.ndarray | Prepared] = self.prepare if self.separable else read_image
        return many(images, read, run, share=partial(self.share, batch=batch), on_error=on_error)

<<<<<<< HEAD
=======
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

>>>>>>> 253a820 (Docstrings of files, settings and segmentation read as plain English)
    def _features(self, rgb: np.ndarray, segments: Segments | None) -> tuple[torch.Tensor, WindowGrid]:
        """Return unit features (Y, X, D) of a photo in half precision, and their windows.

        Raises:
            RecipeError: If scores are not linear in the words, or depend on more than these features.
        """
        if not has_features(self.recipe) or (self.banks, self.upsampling) != (None, None):
            why = "with banks or an upsampler" if has_features(self.recipe) else f"with '{self._method}'"
            raise RecipeError(f"keep=True keeps features, and {why} scores depend on more than these; leave keep out")
        tokens, grid = self.project(rgb, torch.eye(self.backbone.embed_dim, device=self.backbone.device), segments)
        return tokens[0].half(), grid

    def _again(
        self,
        image: Any,
        rgb: np.ndarray,
        segments: Segments | None,
        tokens: torch.Tensor,
        grid: WindowGrid,
        labels: Labels,
        *,
        background: BackgroundSpec = "auto",
    ) -> SegmentationResult:
        """Compute a result from kept features."""
        label_set, policy, started = LabelSet.parse(labels), self.policy(background), time.perf_counter()
        text = self.words.for_photo(rgb, label_set, policy)
        scores = levelled(against(tokens.float(), text)[None], text)
        evidence = self._evidence(scores, grid, text, rgb, policy, segments)
        result = self.decide(evidence, rgb, label_set, policy, segments, image=image, started=started)
        return replace(result, again_fn=partial(self._again, image, rgb, segments, tokens, grid))

<<<<<<< HEAD
=======
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

>>>>>>> 253a820 (Docstrings of files, settings and segmentation read as plain English)
    def decide(
        self,
        evidence: Evidence,
        rgb: np.ndarray,
        labels: LabelSet,
        policy: Background,
        segments: Segments | None = None,
        *,
        image: Any = None,
        started: float | None = None,
        taught: Collection[str] = (),
    ) -> SegmentationResult:
        """Decide labels and everything else from the evidence, whose scores use this segmenter's logit scale.

        Args:
            image: the source of the photo. started: `time.perf_counter()` when the work began.
            taught: names of classes known from examples, whatever the model makes of their words.
        """
        started = time.perf_counter() if started is None else started
        if blank := policy.unknown and remarks.shows_nothing(self.backbone, rgb):
            evidence = replace(evidence, seen=torch.zeros(rgb.shape[:2], dtype=torch.bool))
        scores, text = evidence.scores, evidence.text
        require_finite(scores, f"scores of model '{self.backbone.name}'")
        flat = remarks.of_scores(scores) if evidence.flat else ()
        plan = evidence.windows.plan(rgb.shape[0], rgb.shape[1])
        part, absent = taking_part(scores, text, labels, self.presence, self.backbone.logit_scale)
        # If every string is dropped, nothing is left to give pixels to: all strings stay, and mean nothing.
        classes = text.classes[part] if part.any() else torch.full_like(text.classes, NOTHING)
        scale = self.protocol.logit_scale
        calibration = AS_IT_IS if taught else self.protocol.calibration  # it was fitted to words
        if text.bias is not None:
            scores = scores + text.bias / scale
        refine = self._refiner(rgb, segments)
        gone: tuple[str, ...] = ()
        left = scores[..., part] if len(classes) < len(part) else scores
        decided = decode(
            left,
            plan,
            classes,
            scale=scale,
            threshold=policy.threshold,
            rest=policy.rest,
            refine=refine,
            calibration=calibration,
        )
        del refine  # its weights are large; `scores_fn` computes them again
        if refinement.VOTE in self.refine and segments is not None:
            before, decided = decided, refinement.vote(decided, segments)
            gone = remarks.of_vote(before.labels, decided.labels, labels.names) if segments.clustered else ()
        decided = evidence.limited(decided)
        empty = remarks.of_segments(segments is not None and not len(segments), self._pools)
        return SegmentationResult(
            labels=decided.labels[0].cpu().numpy(),
            names=labels.names,
            confidence=decided.confidence[0].cpu().numpy(),
            image=rgb,
            meta={**self.meta(image, policy, absent, segments, time.perf_counter() - started), **text.places(policy)},
            warnings=(
                *self.words.warnings(labels, policy, rgb, taught),
                *flat,
                *gone,
                *empty,
                *(() if blank or empty else remarks.of_labels(decided.labels.cpu().numpy())),
            ),
            scores_fn=lambda: (
                class_scores(scores, plan, text.classes, len(labels), self._refiner(rgb, segments))[0].cpu().numpy()
            ),
            chances_fn=partial(
                self._chances,
                replace(evidence, scores=left),
                plan,
                classes,
                len(labels),
                policy,
                partial(self._refiner, rgb, segments),
                calibration,
            ),
        )

    def _chances(
        self,
        evidence: Evidence,
        plan: DecodePlan,
        classes: torch.Tensor,
        count: int,
        policy: Background,
        refiner: Callable[[], Refine | None],
        calibration: tuple[float, float],
        rows: np.ndarray,
        cols: np.ndarray,
    ) -> np.ndarray:
        """Return probabilities (count + 1, h, w) of the classes and of nothing, at some rows and columns."""
        y, x = torch.from_numpy(rows), torch.from_numpy(cols)
        found = chances(
            evidence.scores,
            plan,
            classes,
            count,
            y,
            x,
            scale=self.protocol.logit_scale,
            rest=policy.rest,
            refine=refiner(),
            calibration=calibration,
        )
        if evidence.seen is not None:
            unseen = ~evidence.seen[y[:, None], x].to(found.device)
            found = found.masked_fill(unseen, 0)
            found[:, -1] = found[:, -1].masked_fill(unseen, 1)
        return found[0].cpu().numpy()

<<<<<<< HEAD
=======
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

>>>>>>> 253a820 (Docstrings of files, settings and segmentation read as plain English)
    def _refiner(self, rgb: np.ndarray, segments: Segments | None) -> Refine | None:
        if not self.refine:
            return None
        backbone, pixels = self.backbone, self.backbone.normalize(rgb)

        def by_proxy() -> Refine:
            return refinement.by_proxy(self.proxy, pixels[None], backbone.mean, backbone.std, self.recipe)

        return refinement.score_refiner(self.refine, rgb, pixels, segments, by_proxy)
<<<<<<< HEAD
=======

    def _hints(self, segments: Segments | None, rgb: np.ndarray) -> Hints:
        """Collect what the recipe reads besides the photo. Segments are at the size the photo is fed."""
        reads = self.recipe.reads if self.recipe is not None else frozenset()
        hints = Hints(proxy=self.proxy if "proxy" in reads else None, sam=self.sam)
        if segments is None or self.recipe is None:
            return hints
        size = fed_size((rgb.shape[0], rgb.shape[1]), self.protocol, self.backbone.patch_size)
        return segments.hints(hints, self.recipe.reads, size, self.backbone.device)

    def _policy(self, background: BackgroundSpec) -> Background:
        default = Background.parse(self.backbone.background)
        if isinstance(background, str) and background == "auto":
            return default
        policy = Background.parse(background)
        # Words and a threshold are added to the model's own "none of these", if it has one: the model may not know the
        # words, and with few classes it is always sure of the best one.
        asked = bool(policy.words or policy.scenes) or policy.threshold > 0
        return replace(policy, unknown=policy.unknown or (asked and default.unknown))

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
        """The mean unit feature (D,) of a part of an image, by this recipe and these windows."""
        if not has_features(self.recipe):
            what = f"recipe or model '{self._method}'"
            raise LabelError(f"{what} scores words and has no vector for a part of an image; take recipe sclip")
        masks = prompt.region
        axes = torch.eye(self.backbone.embed_dim, device=self.backbone.device)
        tokens, grid = self.project(prompt.content, axes, Segments.parse(masks, masks.size))
        return token_means(tokens[0], grid, masks)[0]

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompt templates that are filled."""
        return self.words.classifier.templates

    def embed_text(self, labels: LabelSet, policy: Background) -> TextEmbeddings:
        """Labels and background words as unit vectors; the last few vocabularies are kept."""
        return self.words.embed(labels, policy)

    def meta(
        self,
        image: Any,
        policy: Background,
        absent: Sequence[str] = (),
        segments: Segments | None = None,
        seconds: float = 0.0,
    ) -> dict[str, Any]:
        """What a result of an image says of its making."""
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
>>>>>>> 253a820 (Docstrings of files, settings and segmentation read as plain English)
