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
from densevl.pipelines.segmentation.presence import taking_part
from densevl.pipelines.segmentation.scorer import BackgroundSpec as BackgroundSpec
from densevl.pipelines.segmentation.scorer import PhotoScorer
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


class Segmenter(PhotoScorer):
    """Open-vocabulary segmentation with one model and one recipe. Call it with an image and labels.

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

    def _refiner(self, rgb: np.ndarray, segments: Segments | None) -> Refine | None:
        if not self.refine:
            return None
        backbone, pixels = self.backbone, self.backbone.normalize(rgb)

        def by_proxy() -> Refine:
            return refinement.by_proxy(self.proxy, pixels[None], backbone.mean, backbone.std, self.recipe)

        return refinement.score_refiner(self.refine, rgb, pixels, segments, by_proxy)
