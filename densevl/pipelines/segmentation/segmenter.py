"""`Segmenter`: a photo and some words to a label map."""

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


class Segmenter(Looker):
    """Open-vocabulary segmentation with one model and one recipe; call it with an image and labels.

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
            model: a name as `load_backbone` takes it, or a loaded `Backbone`.
            recipe: a name from `densevl.recipes.names()` or a `Recipe`; None takes the model's default. Where a paper
                has settings for each benchmark: `recipes.get("resclip", benchmark="voc21")`.
            weights: a checkpoint file, if `model` names an architecture or config.
            templates: prompt templates (see `vocabulary.templates`); None takes the model's own.
            text: descriptors, template weights, hierarchies, a transform of embeddings; None is none of them.
            background: when a pixel gets no label: "auto" (the model's default), "none", "unknown", "1-max", a
                probability, "foreground" (by CLIP-DINOiser's heads), words that compete, or a list such as "voc"; see
                `Background.parse`.
            presence: a class that reaches this probability (0..1) at no patch, at the model's own logit scale, is
                judged not in the image: it is dropped before labels are decided and named in `meta["absent"]`; its
                scores stay. MaskCLIP's prompt denoising has 0.5. None keeps all.
            protocol: resize and windows: an `InferenceProtocol`, or a dict of changes to the model's own, or "tiles",
                "sliding" (the papers' half-overlapping windows) or "whole"; None takes the model's own. A recipe that
                stitches windows blends at patches whatever it says.
            proxy: the model whose affinity the recipe borrows: a name or path for `load_proxy`, or a `Proxy`; None
                loads the one the recipe was published with. "mini-sam" is in the package.
            proxy_scope: "image", the proxy looks at the photo once; "window", at each window, as the papers do.
            sam: likewise, the encoder of SAM, for recipes that spread the whole image by it.
            proposals: proposes segments of every photo that comes without: "mini-sam", or a function of the uint8 RGB
                (H, W, 3) that returns what a call's `regions` may be.
            views: looks at every photo several times and averages: "flip", "flip+scale", "itaclip", or `Views`.
            refine: one or more of, first, "anyup", "jbu" or "jafar", a trained upsampler; "pamr", scores flow between
                pixels of like colour; "edges", the same over short distances on a small copy, cheaply; "lposs+", they
                are propagated over pixels; "proxy", they flow between places that the proxy sees as alike (CLIPer's
                last step); "segments", they are mixed with their mean over each segment; and, last, "vote", each
                segment takes its most frequent label ("pamr,vote"). "none" is none, None the model's own choice,
                or for cliptrase a vote of its own clusters, for models of at least its 14 x 14 patches.
            upsampler: the file of the upsampler that `refine` names, as it is published or as safetensors, or one of
                `refine.upsampling.load_upsampler`.
            bank: folders of banks, or `Bank`s: segments are scored by the like of them in other photos as well; several
                banks are averaged (CorrCLIP v2). Segments must be given or proposed.
            bank_share: what the banks count beside the photo's own scores, 0..1. neighbours: regions asked for each
                segment.
            device: "cpu", "cuda"; None chooses.
            precision: of the image tower's linear layers (`backbones.precision`): "float32", "int8", "bfloat16",
                "float16", "float32-packed", or "auto", the fastest here; None keeps that of the backbone.
            compat: run the recipe as its authors published it, slips included; see `densevl recipes show`.
            use_cache: keep text embeddings on disk.

        Raises:
            ModelError, WeightsError, MissingExtraError: the model, or one it borrows from, cannot be loaded.
            RecipeError: unknown recipe or refinement, a model to which recipes do not apply, or a recipe that has no
                use for `proxy` or `sam`.
            OptionError: a value that a setting cannot have.
            ProtocolError: impossible windows or views.
            BankError: a bank that is damaged, empty, or of models other than those of its names.
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
            labels: the classes; "car | truck" are two words for one class; see `LabelSet.parse`.
            background: overrides the segmenter's policy for this call.
            regions: segments of the photo, for recipes and refinements that read them: an (H, W) integer map, 0 where
                no segment is, or (M, H, W) bool masks, of which the smaller has a pixel where they overlap. A recipe
                that pools over masks (textregion) labels their pixels alone.
            boxes: of some classes, by the class or one of its synonyms, (4,) or (M, 4) x0, y0, x1, y1 in pixels: all
                of the class lies in them, and there it is likelier. A class without, or with none of them (0, 4), is
                looked for everywhere; where every class has some, pixels outside all of them are nothing.
            keep: keep the photo's features with the result, so that `SegmentationResult.reclassify` needs no model.
                They are held in half precision, and decide this result too.

        Returns:
            labels (H, W) int16 at the image's own size, -1 where nothing; see `SegmentationResult`. Its scores are
            refined as the labels are, except by a vote.

        Raises:
            LabelError: unusable labels, or a box of none of them.
            ImageError: unreadable image.
            ProposalError: regions or boxes that do not fit the photo.
            RecipeError: regions are needed.
            OptionError: an unusable background.
        """
        label_set, policy, rgb = LabelSet.parse(labels), self.policy(background), read_image(image)
        started = time.perf_counter()
        boxed = None if boxes is None else ClassBoxes.parse(boxes, label_set, (rgb.shape[0], rgb.shape[1]))
        segments = self.segments(rgb, regions)
        if keep:
            if boxed is not None:
                raise OptionError("keep=True keeps features for other labels, and boxes are of these; give one of them")
            return self._again(image, rgb, segments, *self._features(rgb, segments), label_set, background=policy)
        evidence = self.look(rgb, label_set, policy, segments)
        decide = partial(self.decide, rgb=rgb, labels=label_set, policy=policy, segments=segments, image=image)
        if boxed is None:
            return decide(evidence, started=started)
        evidence = evidence.plus(boxed.prior(evidence.windows) / self.protocol.logit_scale)
        if boxed.everywhere is not None and (evidence.text.classes != NOTHING).all():  # nothing else competes outside
            evidence = evidence.within(torch.from_numpy(boxed.everywhere))
        result = decide(evidence, started=started)
        told = (*result.warnings, *boxed.warnings(result.labels))
        return replace(result, warnings=told, meta={**result.meta, "boxes": dict(boxed.given)})

    def many(
        self,
        images: Iterable[Any],
        labels: Labels,
        *,
        background: BackgroundSpec = "auto",
        batch: int | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[SegmentationResult]:
        """Segment many images, in order; each result is that of a call with its image.

        Images are read ahead by a thread. Where the recipe allows (see `separable`), windows of several photos go
        through the tower together.

        Args:
            images: as a call takes them. labels, background: as for a call, for all of them.
            batch: at most so many windows share a pass; None takes as many as the device runs fastest.
            on_error: called with an image that cannot be read, and the error, in its place; None raises there.

        Raises:
            ImageError: from the iterator, at the place of an image that cannot be read. Else as a call, at once.
        """
        label_set, policy = LabelSet.parse(labels), self.policy(background)
        batch_size(batch, self.backbone.device, 1)  # an impossible one fails at once

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
        """Unit features (Y, X, D) of a photo in half precision, and the windows they lie on.

        Raises:
            RecipeError: scores that are not linear in the words, or of more than these features.
        """
        if not has_features(self.recipe) or (self.banks, self.upsampling) != (None, None):
            what = "with banks or an upsampler" if has_features(self.recipe) else f"by recipe or model '{self._method}'"
            raise RecipeError(f"keep=True keeps features, and {what} words are scored by more; leave keep out")
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
        """A result from kept features."""
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
        """Labels and all else from the evidence; scores are taken to be at this segmenter's own logit scale.

        Args:
            image: where the photo came from. started: `time.perf_counter()` when the work began.
            taught: names of the classes that are known by examples, whatever the model thinks of their words.
        """
        started = time.perf_counter() if started is None else started
        if blank := policy.unknown and remarks.shows_nothing(self.backbone, rgb):
            evidence = replace(evidence, seen=torch.zeros(rgb.shape[:2], dtype=torch.bool))
        scores, text = evidence.scores, evidence.text
        require_finite(scores, f"scores of model '{self.backbone.name}'")
        flat = remarks.of_scores(scores) if evidence.flat else ()
        plan = evidence.windows.plan(rgb.shape[0], rgb.shape[1])
        part, absent = taking_part(scores, text, labels, self.presence, self.backbone.logit_scale)
        # If every string is dropped there is nothing to hand pixels to: all stay, and stand for nothing.
        classes = text.classes[part] if part.any() else torch.full_like(text.classes, NOTHING)
        scale = self.protocol.logit_scale
        calibration = AS_IT_IS if taught else self.protocol.calibration  # it was fitted on words
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
        del refine  # its weights are large; `scores` makes them again
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
        """Probabilities (count + 1, h, w) of the classes and of nothing, at some rows and columns of the photo."""
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
