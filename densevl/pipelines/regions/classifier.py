"""`RegionClassifier`: from a photo, its masks or boxes, and words to a name for each region."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from densevl.backbones import Backbone, InferenceProtocol
from densevl.backbones.reach import listed as quoted
from densevl.errors import LabelError, OptionError, suggest
from densevl.images import read_image
from densevl.inference.views import Views
from densevl.pipelines import remarks
from densevl.pipelines.borrowing import Borrowed
from densevl.pipelines.many import OnError, batch_size, hearing, one_by_one, source
from densevl.pipelines.regions.discovery import (
    REPEATED,
    alike,
    class_probs,
    few_words,
    merged_probs,
    readable,
    together,
    union,
)
from densevl.pipelines.regions.embedding import RegionEmbedder
from densevl.pipelines.regions.scores import RegionScorer, default_operators
from densevl.pipelines.segmentation.presence import without_absent
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Labels, Segmenter
from densevl.pipelines.settings import DISCOVERY, NAME_FIRST, POOL_FIRST, check, checked
from densevl.proposals import Proposer
from densevl.proposals.decoded import Decoded
from densevl.recipes import Recipe
from densevl.regions import ensemble
from densevl.regions.embedded import RegionEmbeddings
from densevl.regions.fusion import ScoreSource, fuse
from densevl.regions.naming import decide, log_probs, prototypes
from densevl.regions.operators.dense import has_features
from densevl.regions.operators.names import parse
from densevl.regions.overlap import nms
from densevl.regions.result import RegionResult
from densevl.results import UNLABELLED
from densevl.vocabulary import NOTHING, Background, LabelSet, TextOptions
from densevl.vocabulary.nouns import nouns
from densevl.vocabulary.text_classifier import TextEmbeddings

PROPOSER = "mini-sam"
FORMS = ("regions", "boxes", "rle", "points")
"""Forms in which regions can be given."""


class RegionClassifier(RegionEmbedder):
    """Name regions with one model. Call it with a photo, words, and masks or boxes, or let it propose masks.

    Examples:
        >>> classify = RegionClassifier("mini")
        >>> result = classify("scene.png", ["cat", "dog | puppy"])
        >>> result.found, result.boxes, result.confidence
    """

    @checked
    def __init__(
        self,
        model: str | Backbone = "auto",
        operator: str | Mapping[str, float] | None = None,
        *,
        recipe: str | Recipe | None = None,
        weights: str | Path | None = None,
        proposals: str | Proposer | Callable[..., Any] | None = PROPOSER,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        order: str | None = None,
        second_look: str | None = None,
        second_share: float = 0.15,
        second_top: int = 5,
        margin: float = 0.0,
        clip_share: str | Sequence[float] = "fc-clip",
        templates: str | Sequence[str] | None = None,
        text: TextOptions | None = None,
        background: BackgroundSpec = "auto",
        presence: float | None = None,
        protocol: InferenceProtocol | Mapping[str, Any] | str | None = None,
        proxy: Borrowed = None,
        proxy_scope: str = "image",
        sam: Borrowed = None,
        views: str | Views | None = None,
        device: str | None = None,
        precision: str | None = None,
        compat: bool = False,
        use_cache: bool = True,
    ) -> None:
        """Load the model. The proposer is loaded when a photo first needs it.

        Args:
            model, weights, templates, text, background, proxy, proxy_scope, sam, device, precision, compat, use_cache:
                as for `Segmenter`.
            operator: how regions are embedded (see `regions.operators`): "cls_mask", "pool+cls_mask" with equal
                weights, or {"pool": 0.3, "cls_mask": 0.7}. Their probabilities are fused geometrically. None is
                "pool+cls_mask" if the model has a CLS token to copy, else "pool".
            recipe: how dense features are computed, for "pool" and "roi"; None takes the model's default.
            proposals: finds regions of photos that are given without: a name for `load_proposer`, a `Proposer`, or a
                function of the photo that returns `Proposals` or bool masks (R, H, W). With None, regions must be
                given. If it returns `Decoded`, masks with class scores of a decoder, these are combined with CLIP's.
            options: keywords for operators, {"crop": {"square": "context", "expand": 1.5}}. "alpha" (Alpha-CLIP) and
                "crop_prompted" (OVSeg) need the file of their weights, {"alpha": {"weights": "clip_l14.pth"}}.
            order: for "pool" only: "pool_then_classify" averages features, "classify_then_pool" averages probabilities
                of each place (EdaDet), which suits masks that contain more than one thing. None is the first if the
                model has features of its own.
            second_look: an operator, such as "crop", for the most uncertain regions.
            second_share: look again at no more than this share of the regions. second_top: rank only this many of a
                region's likeliest strings again (GC-CLIP).
            margin: a region whose best class leads the next by less than this probability is nothing.
            clip_share: CLIP's weight against a decoder's scores: that of FC-CLIP (0.4 for classes the decoder was
                trained on, 0.8 for others), "odise" (0.3, 0.7), or two numbers. Classes unknown to the decoder are
                judged by CLIP alone; its "no object" competes as nothing.
            presence: drop a class that reaches this probability (0..1) in no region. It is left out before regions are
                named, and listed in `meta["absent"]`. None keeps all.
            protocol: as for `Segmenter`, but windows overlap by half by default, so that one of them contains a region
                whole.
            views: embed regions in several views of the photo and average the vectors; names as for `Segmenter`.

        Raises:
            ModelError, WeightsError, MissingExtraError: If the model cannot be loaded, or lacks what the operator
                needs.
            RecipeError: If the recipe is unknown, or has no features to pool.
            OptionError: If a setting has a value it does not accept.
        """
        chosen = None if operator is None else parse(operator, options)  # mistyped names fail before the model loads
        self.clip_share = ensemble.shares(clip_share)
        if not isinstance(protocol, (InferenceProtocol, str)):  # tiles, as for a Segmenter, would cut regions apart
            protocol = {"plan": "sliding", **(protocol or {})}
        by_region = text is not None and text.template_weights == "region"
        self._segment = Segmenter(
            model,
            recipe,
            weights=weights,
            templates=templates,
            text=replace(text, template_weights="pixel") if text is not None and by_region else text,
            background=background,
            presence=presence,
            protocol=protocol,
            proxy=proxy,
            proxy_scope=proxy_scope,
            sam=sam,
            views=views,
            device=device,
            precision=precision,
            compat=compat,
            use_cache=use_cache,
        )
        for name, own in (options or {}).items():
            if not isinstance(own, Mapping):
                raise OptionError(f"options of {name!r} are a {type(own).__name__}; they must be a dict by name")
        segment = self._segment
        self.backbone, self.recipe, self.protocol = segment.backbone, segment.recipe, segment.protocol
        operators = chosen or default_operators(self.backbone)
        self.scorer = RegionScorer(
            self.backbone,
            self.recipe,
            self.protocol,
            operators,
            {name: dict(own) for name, own in (options or {}).items()},
            order or (POOL_FIRST if has_features(self.recipe) or "pool" not in operators else NAME_FIRST),
            second_look,
            second_share,
            second_top,
            segment.proxy,
            segment.sam,
            proxy_scope,
            segment.views,
        )
        self.operators, self.order = self.scorer.operators, self.scorer.order
        if text is not None and text.template_weights == ("pixel" if self.order == POOL_FIRST else "region"):
            fit = "region" if self.order == POOL_FIRST else "pixel"
            raise OptionError(
                f"order '{self.order}' compares words with {fit}s: take template_weights='{fit}', not "
                f"'{text.template_weights}'"
            )
        self.margin = margin
        self._named: Any = proposals
        self._proposals: Any = proposals  # loaded when first needed

    @hearing
    def __call__(
        self,
        image: Any,
        labels: Labels,
        *,
        regions: Any = None,
        boxes: Any = None,
        rle: Any = None,
        points: Any = None,
        background: BackgroundSpec = "auto",
    ) -> RegionResult:
        """Name the regions of one photo.

        Args:
            image: path, PIL image, numpy (H, W, 3) uint8 RGB, or torch (3, H, W).
            labels: the classes; see `LabelSet.parse`.
            regions: masks (R, H, W) of that photo, bool or 0 and 1; an (H, W) integer map, 0 where there is no region;
                or `Proposals`.
            boxes: (R, 4) x0, y0, x1, y1 in pixels of the photo; may be floats, and are clipped to the photo.
            rle: COCO's "segmentation" entries: run lengths, or polygons.
            points: (R, 2) x, y in pixels, one click each, from which the classifier's proposer, a SAM, makes masks
                (Open-Vocabulary SAM). Give at most one of these four; with none, the proposer finds regions.
            background: overrides the classifier's policy for this call.

        Returns:
            One name and score per region, in the order given; see `RegionResult`.

        Raises:
            ImageError: If the image is unreadable.
            LabelError: If the labels are unusable.
            ProposalError: If regions do not fit the photo (boxes in 0-1 or without area, masks without a pixel), are
                given in several forms, or are not given and there is no proposer.
        """
        found = self.embed(image, regions=regions, boxes=boxes, rle=rle, points=points)
        return self.name(found, labels, background=background)

    def many(
        self,
        images: Iterable[Any],
        labels: Labels,
        *,
        background: BackgroundSpec = "auto",
        batch: int | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[RegionResult]:
        """Propose and name the regions of many images, in order. Each result equals that of a call with its image.

        A thread reads images ahead. The regions of one image share its passes.

        Args:
            images: any that a call accepts. labels, background: as for a call, for all images.
            batch: accepted as by `Segmenter.many`, but unused: the regions of a photo are a batch of their own.
            on_error: called with an image that cannot be read and the error, in its place; None raises there.

        Raises:
            ImageError: From the iterator, in the place of an unreadable image. Other errors are raised at once, as by
                a call.
        """
        batch_size(batch, self.backbone.device, 1)
        label_set, policy = LabelSet.parse(labels), self.policy(background)

        def call(image: Any, rgb: np.ndarray) -> RegionResult:
            return self.name(replace(self.embed(rgb), source=source(image)), label_set, background=policy)

        return one_by_one(images, read_image, call, on_error=on_error)

    def name(self, found: RegionEmbeddings, labels: Labels, *, background: BackgroundSpec = "auto") -> RegionResult:
        """Name embedded regions. The photo is only used again if `second_look` needs it.

        Raises:
            LabelError: If labels or background are unusable.
        """
        label_set, policy = LabelSet.parse(labels), self.policy(background)
        text = self._segment.words.for_photo(found.image, label_set, policy)
        judged = self.scorer.judge(found, text)
        flat = remarks.of_scores(judged) if text.bias is None else ()
        logp, absent = without_absent(judged, text.classes, label_set, self._segment.presence)
        classes = text.classes
        decoder: dict[str, Any] = {}
        unmet: tuple[str, ...] = ()
        if isinstance(found.regions, Decoded):
            seen = torch.from_numpy(found.regions.areas > 0).to(logp.device)
            logp, classes = ensemble.with_decoder(logp, classes, found.regions, label_set, self.clip_share, seen)
            decoder, unmet = self._beside(found.regions, label_set)
        result = self.judged(found, logp, label_set, classes, policy)
        meta = {**result.meta, "absent": list(absent), **decoder, **text.places(policy)}
        warned = (
            *self.warnings(label_set, policy, found.image),
            *flat,
            *unmet,
            *remarks.of_labels(result.labels, "region"),
        )
        return replace(result, meta=meta, warnings=warned)

    def _beside(self, decoded: Decoded, labels: LabelSet) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return which classes the decoder knows, for the metadata, with a warning if it knows none."""
        known = ensemble.matches(decoded.names, labels).any(dim=0).tolist()
        met = [name for name, here in zip(labels.names, known, strict=True) if here]
        unmet = (
            f"none of the labels is a class of the decoder ({quoted(decoded.names)}), so CLIP alone tells them apart"
        )
        return {"decoder": {"classes": met, "clip_share": list(self.clip_share)}}, () if met else (unmet,)

    @hearing
    def discover(
        self,
        image: Any,
        words: Labels | None = None,
        *,
        threshold: float = 0.0,
        agree: float = 0.5,
        overlap: float | None = 0.5,
        merge: float | None = None,
        **regions: Any,
    ) -> RegionResult:
        """Name the regions of a photo without labels, by few words of a long list (zero-guidance).

        Every region is compared with the whole list. The fewest words are kept such that each region has one that is at
        least `agree` times as likely as its likeliest. Overlapping regions of the same word are merged.

        Args:
            image: as for a call. words: the list, in any form of `LabelSet.parse`; None is `vocabulary.nouns`, about
                1,300 plain nouns. Words that the model does not know are left out. Embeddings are cached on disk.
            threshold: regions whose word is less likely than this are nothing. Probabilities are over the whole list.
            agree: 1 gives every region its likeliest word.
            overlap: share of the smaller of two regions. 1 merges none; None merges all regions of each word, which
                suits superpixels, since they never overlap.
            merge: first join neighbours whose similarity is at least this, -1 to 1: half the cosine of their vectors
                and half that of their words. Joined regions are embedded again. The paper uses 0.8, for superpixels or
                clusters. None joins none.
            regions: regions=, boxes=, rle= or points=, as for a call; without them, the proposer finds regions.

        Returns:
            A result with the words that were kept as names, and the merged regions.

        Raises:
            LabelError: If the model knows none of the words.
            OptionError: If shares are out of range. Other errors as for a call.
        """
        for name, value in {"threshold": threshold, "agree": agree, "overlap": overlap, "merge": merge}.items():
            check(name, value, DISCOVERY)
        if other := next((name for name in regions if name not in FORMS), None):
            raise OptionError(
                f"discover has no option '{other}'{suggest(other, FORMS)}; regions are {', '.join(FORMS)}"
            )
        if merge is not None and self.order == NAME_FIRST:
            raise OptionError(f"merge compares vectors of regions, which order '{NAME_FIRST}' does not compute")
        found = self.embed(image, **regions)
        listed, unread = readable(nouns() if words is None else LabelSet.parse(words), self.backbone.reach)
        text = self._segment.words.for_photo(found.image, listed, Background())
        if merge is not None and len(found) > 1:
            found = self._joined(found, text, merge)
        p_RC = class_probs(self.scorer.judge(found, text), text.classes, len(listed))
        p_RC = p_RC * torch.from_numpy(found.regions.areas > 0).to(p_RC.device)[:, None]
        chosen = few_words(p_RC, agree)
        few = LabelSet(tuple(listed.names[c] for c in chosen), tuple(listed.synonyms[c] for c in chosen))
        p_RC = p_RC[:, chosen]
        best, labels = p_RC.max(dim=1) if len(p_RC) else (p_RC.sum(dim=1), torch.zeros(0, dtype=torch.int64))
        labels = torch.where((best > 0) & (best >= threshold), labels, NOTHING)
        groups = together(found.regions, labels.cpu().numpy(), overlap)
        merged, p_RC = union(found, groups), merged_probs(p_RC, found.regions.areas, groups)
        result = self.judged(merged, p_RC.log(), few, torch.arange(len(few)), Background(threshold=threshold))
        kept = np.sort(nms(result.regions, np.where(result.labels >= 0, result.confidence, 0), threshold=REPEATED))
        unknown = (f"model '{self.backbone.name}' does not know {unread} words of the list, so it leaves them out",)
        warned = (*listed.warnings, *unknown[: bool(unread)], *remarks.of_picture(self.backbone, found.image))
        return replace(result.select(kept), warnings=warned)

    def _joined(self, found: RegionEmbeddings, text: TextEmbeddings, least: float) -> RegionEmbeddings:
        """Merge similar neighbours, and embed the merged regions."""
        words = text.vectors[self.scorer.judge(found, text).argmax(dim=1)]
        rows = torch.stack([weight * found.vectors[name] for name, weight in self.operators.items()]).sum(dim=0)
        groups = alike(found.regions, F.normalize(rows, dim=1), words, least)
        if len(groups) == len(found):
            return found
        joined = union(found, groups)
        vectors, tokens = self.scorer.vectors(joined.image, joined.regions)
        return replace(joined, vectors=vectors, tokens=tokens)

    def judged(
        self,
        found: RegionEmbeddings,
        logp: torch.Tensor,
        labels: LabelSet,
        classes: torch.Tensor,
        policy: Background,
    ) -> RegionResult:
        """Build the result of embedded regions from log-probabilities (R, T). `classes`: (T,), class of each string."""
        return replace(
            self._result(found, logp, classes.to(logp.device), labels.names, policy),
            rename_fn=lambda other, **options: self.name(found, other, **options),
            dense_fn=lambda: self._segment(found.image, labels, background=policy).labels,
        )

    def name_like(
        self,
        found: RegionEmbeddings,
        examples: Mapping[str, RegionEmbeddings],
        *,
        words: float = 0.0,
        threshold: float = 0.0,
    ) -> RegionResult:
        """Name embedded regions by examples instead of words: a crop, box or mask of an object stands for a class.

        A class is the mean of its examples, for each operator. With `words`, its name counts too, mixed as in CLIPSeg
        (CVPR 2022). Examples only compete with examples, because images are closer to images than to any word.

        Args:
            found: from `embed`. examples: embedded regions by name, also from `embed`. Those named "nothing" stand for
                none of the others.
            words: 0..1, weight of the name against its examples. threshold: regions below it are nothing.

        Raises:
            LabelError: If there are fewer than two names, or a name has no region.
            OptionError: If `words` is out of range, or the order keeps no vectors.
        """
        if self.order == NAME_FIRST:
            raise OptionError(
                f"examples are compared with vectors of regions, which order '{NAME_FIRST}' does not compute"
            )
        if not 0 <= words <= 1:
            raise OptionError(f"words is {words:g}; it must be a weight within 0..1")
        if len(examples) < 2:
            raise LabelError(
                f"there are examples of {len(examples)} names; give at least two, of which one may be '{UNLABELLED}'"
            )
        named = [name for name in examples if name != UNLABELLED]
        order = [*named, *(name for name in examples if name == UNLABELLED)]
        text = self.embed_text(LabelSet.parse(named), Background()).vectors if words else None
        classes = torch.tensor([i if i < len(named) else NOTHING for i in range(len(order))])
        sources = []
        for operator, weight in self.operators.items():
            rows = prototypes({name: examples[name].vectors[operator] for name in order}, text, words)
            as_text = TextEmbeddings(rows, classes.to(rows.device), tuple(order))
            logp = log_probs(found.vectors[operator], as_text, self.scorer.scale(operator))
            sources.append(ScoreSource(logp, weight))
        logp = sources[0].logp if len(sources) == 1 else fuse(sources)
        return self._result(found, logp, classes.to(logp.device), tuple(named), Background(threshold=threshold))

    def _result(
        self,
        found: RegionEmbeddings,
        logp: torch.Tensor,
        classes: torch.Tensor,
        names: tuple[str, ...],
        policy: Background,
    ) -> RegionResult:
        valid = torch.from_numpy(found.regions.areas > 0).to(logp.device)
        decided = decide(logp, classes, len(names), policy, margin=self.margin, valid=valid)
        return RegionResult(
            regions=found.regions,
            names=names,
            scores=decided.probs.cpu().numpy(),
            nothing=decided.nothing.cpu().numpy(),
            labels=decided.labels.cpu().numpy(),
            confidence=decided.scores.cpu().numpy(),
            image=found.image,
            embeddings=found.vectors,
            meta=self._meta(found, policy),
        )
