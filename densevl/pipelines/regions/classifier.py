"""`RegionClassifier`: a photo, its masks or boxes, and some words to a name for each region."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from densevl import __version__, digest, fitted
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
from densevl.pipelines.regions.prompting import prompted
from densevl.pipelines.regions.scores import RegionScorer, default_operators
from densevl.pipelines.segmentation.presence import without_absent
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Labels, Segmenter
from densevl.pipelines.settings import DISCOVERY, NAME_FIRST, POOL_FIRST, check, checked
from densevl.proposals import ProposalError, Proposals, Proposer, given, load_proposer
from densevl.proposals.decoded import Decoded
from densevl.proposals.load import form_of
from densevl.recipes import Recipe
from densevl.regions import ensemble
from densevl.regions.embedded import RegionEmbeddings
from densevl.regions.fusion import ScoreSource, fuse
from densevl.regions.naming import decide, log_probs, prototypes
from densevl.regions.operators.dense import has_features
from densevl.regions.operators.names import OPERATORS, parse
from densevl.regions.overlap import nms
from densevl.regions.result import RegionResult
from densevl.results import UNLABELLED
from densevl.vocabulary import NOTHING, Background, LabelSet, TextOptions
from densevl.vocabulary.nouns import nouns
from densevl.vocabulary.text_classifier import TextEmbeddings
from densevl.weights import require_finite

PROPOSER = "mini-sam"
FORMS = ("regions", "boxes", "rle", "points")
"""In which regions are given."""


class RegionClassifier:
    """Names regions with one model; call it with a photo, words, and masks or boxes, or let it propose masks.

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
        """Load the model; the proposer follows when a photo first needs it.

        Args:
            model, weights, templates, text, background, proxy, proxy_scope, sam, device, precision, compat, use_cache:
                as `Segmenter` takes them.
            operator: how regions are embedded (see `regions.operators`): "cls_mask", "pool+cls_mask" with equal
                weights, or {"pool": 0.3, "cls_mask": 0.7}; their judgements are fused geometrically. None is
                "pool+cls_mask" where the model has a CLS token to copy, else "pool".
            recipe: how dense features are made, for "pool" and "roi"; None takes the model's default.
            proposals: finds regions of photos that come without: a name for `load_proposer`, a `Proposer`, or a
                function of the photo that returns `Proposals` or bool masks (R, H, W). None: regions must be given.
                One that returns `Decoded`, masks with a decoder's own class scores, has these weighed with CLIP's.
            options: keywords for operators, {"crop": {"square": "context", "expand": 1.5}}; for "alpha" (Alpha-CLIP)
                and "crop_prompted" (OVSeg) the file of their weights, {"alpha": {"weights": "clip_l14.pth"}}.
            order: for "pool" alone: "pool_then_classify" averages features, "classify_then_pool" probabilities of
                each place (EdaDet), which suits masks that hold more than one thing. None is the first where the model
                has features of its own.
            second_look: an operator for the regions that the first left most uncertain, such as "crop".
            second_share: at most this share of the regions is looked at again. second_top: only so many of a region's
                likeliest strings are ranked anew (GC-CLIP).
            margin: a region whose best class leads the next by less than this probability is nothing.
            clip_share: CLIP's say beside a decoder's scores: of FC-CLIP (0.4 for classes that the decoder was trained
                on, 0.8 for others) or "odise" (0.3, 0.7), or two numbers. A class that it has no name for is CLIP's
                alone; its "no object" competes as nothing.
            presence: a class that reaches this probability (0..1) in no region is judged not in the photo: it is
                dropped before regions are named, and listed in `meta["absent"]`. None keeps all.
            protocol: as `Segmenter`, but windows overlap by half unless it says otherwise, so that one sees a region
                whole.
            views: regions are embedded in several views of the photo, and the vectors averaged; names as `Segmenter`.

        Raises:
            ModelError, WeightsError, MissingExtraError: the model cannot be loaded, or the operator needs what it
                lacks.
            RecipeError: an unknown recipe, or one that has no features to pool.
            OptionError: a value that a setting cannot have.
        """
        chosen = None if operator is None else parse(operator, options)  # mistyped ones fail before the model loads
        self.clip_share = ensemble.shares(clip_share)
        if not isinstance(protocol, (InferenceProtocol, str)):  # tiles, a Segmenter's choice, would cut regions in two
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
        self._proposals: Any = proposals  # the same, loaded when first needed

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
            regions: masks (R, H, W) of that photo, bool or 0 and 1; an (H, W) integer map, 0 where no region is; or
                `Proposals`.
            boxes: (R, 4) x0, y0, x1, y1 in pixels of the photo, floats allowed, parts outside are cut off.
            rle: COCO's "segmentation" entries: run lengths, or polygons.
            points: (R, 2) x, y in pixels, a click each, of which the classifier's proposer, a SAM, makes masks
                (Open-Vocabulary SAM). At most one of these four; none of them lets the proposer find regions.
            background: overrides the classifier's policy for this call.

        Returns:
            One name and score a region, in the order given; see `RegionResult`.

        Raises:
            ImageError: unreadable image.
            LabelError: unusable labels.
            ProposalError: regions that do not fit the photo, such as boxes in 0-1, boxes without area and masks without
                a pixel; several kinds of them; or none and no proposer.
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
        """Propose and name the regions of many images, in order; each result is that of a call with its image.

        Images are read ahead by a thread; the regions of one share its passes.

        Args:
            images: as a call takes them. labels, background: as for a call, for all of them.
            batch: taken as by `Segmenter.many`; the regions of a photo are a batch of their own.
            on_error: called with an image that cannot be read, and the error, in its place; None raises there.

        Raises:
            ImageError: from the iterator, at the place of an image that cannot be read. Else as a call, at once.
        """
        batch_size(batch, self.backbone.device, 1)
        label_set, policy = LabelSet.parse(labels), self.policy(background)

        def call(image: Any, rgb: np.ndarray) -> RegionResult:
            return self.name(replace(self.embed(rgb), source=source(image)), label_set, background=policy)

        return one_by_one(images, read_image, call, on_error=on_error)

    def embed(
        self,
        image: Any,
        *,
        regions: Any = None,
        boxes: Any = None,
        rle: Any = None,
        points: Any = None,
    ) -> RegionEmbeddings:
        """Embed the regions of one photo, to be named by `name` as often as wanted; arguments as of a call."""
        rgb = read_image(image)
        started = time.perf_counter()
        given = self.regions(rgb, regions=regions, boxes=boxes, rle=rle, points=points)
        vectors, tokens = self.scorer.vectors(rgb, given)
        for operator, rows in vectors.items():
            require_finite(rows, f"vectors of regions, by '{operator}', of model '{self.backbone.name}'")
        seconds = round(time.perf_counter() - started, 3)
        return RegionEmbeddings(rgb, given, vectors, tokens, source=source(image), seconds=seconds)

    def name(self, found: RegionEmbeddings, labels: Labels, *, background: BackgroundSpec = "auto") -> RegionResult:
        """Name embedded regions; the photo is looked at again only where `second_look` asks for it.

        Raises:
            LabelError: unusable labels or background.
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
        """What a decoder's scores counted, for the meta; and a warning where they told no class from another."""
        known = ensemble.matches(decoded.names, labels).any(dim=0).tolist()
        met = [name for name, here in zip(labels.names, known, strict=True) if here]
        told = f"none of the labels is a class of the decoder ({quoted(decoded.names)}), so CLIP alone tells them apart"
        return {"decoder": {"classes": met, "clip_share": list(self.clip_share)}}, () if met else (told,)

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
        """Name the regions of a photo without labels: by a long list of words, of which few are used (zero-guidance).

        Every region is compared with the whole list. Of the words, so few are kept that each region has one at least
        `agree` times as likely as its likeliest. Regions of the same word that overlap become one.

        Args:
            image: as of a call. words: the list, in any form of `LabelSet.parse`; None is `vocabulary.nouns`, some
                1,300 plain nouns. Words that the model does not know are left out. Embeddings are cached on disk.
            threshold: regions whose word is less likely than this are nothing; probabilities are among the whole list.
            agree: 1 gives every region its likeliest word.
            overlap: share of the smaller of two regions; 1 merges none, None makes one region of each word, as suits
                superpixels, which never overlap.
            merge: first join neighbours that are at least so much alike, -1 to 1, by half the cosine of their vectors
                and half that of their words, and embed what was joined anew. The paper has 0.8, over superpixels or
                clusters. None joins none.
            regions: regions=, boxes=, rle= or points=, as of a call; without, the proposer finds them.

        Returns:
            A result whose names are the words that were kept, and whose regions are merged ones.

        Raises:
            As a call.
            LabelError: the model knows none of the words.
            OptionError: shares out of range.
        """
        for name, value in {"threshold": threshold, "agree": agree, "overlap": overlap, "merge": merge}.items():
            check(name, value, DISCOVERY)
        if other := next((name for name in regions if name not in FORMS), None):
            raise OptionError(
                f"discover has no option '{other}'{suggest(other, FORMS)}; regions are {', '.join(FORMS)}"
            )
        if merge is not None and self.order == NAME_FIRST:
            raise OptionError(f"merge compares vectors of regions, which order '{NAME_FIRST}' does not make")
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
        unknown = (f"model '{self.backbone.name}' does not know {unread} words of the list, so they are left out",)
        warned = (*listed.warnings, *unknown[: bool(unread)], *remarks.of_picture(self.backbone, found.image))
        return replace(result.select(kept), warnings=warned)

    def _joined(self, found: RegionEmbeddings, text: TextEmbeddings, least: float) -> RegionEmbeddings:
        """Neighbours that are alike made one, and embedded anew."""
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
        """The result of embedded regions and their log probabilities (R, T); classes: (T,) class of each string."""
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
        """Name embedded regions after examples instead of words: a crop, a box or a masked thing stands for a class.

        A class is the mean of its examples, by each operator. With `words` its name has a say too, as CLIPSeg (CVPR
        2022) mixes the two. Examples only compete with examples: images are nearer to images than to any word.

        Args:
            found: from `embed`. examples: for each name its embedded regions, from `embed` too; those named "nothing"
                stand for what is none of the others.
            words: 0..1, weight of the name beside its examples. threshold: regions below it are nothing.

        Raises:
            LabelError: fewer than two names, or a name without a region.
            OptionError: `words` out of range, or an order that keeps no vectors.
        """
        if self.order == NAME_FIRST:
            raise OptionError(
                f"examples are compared with vectors of regions, which order '{NAME_FIRST}' does not make"
            )
        if not 0 <= words <= 1:
            raise OptionError(f"words is {words:g}; it is a weight within 0..1")
        if len(examples) < 2:
            raise LabelError(
                f"there are examples of {len(examples)} names; at least two compete, of which one may be '{UNLABELLED}'"
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

    def regions(self, rgb: np.ndarray, **forms: Any) -> Proposals:
        """The regions of a uint8 RGB photo: those given in one of the forms that a call takes, else proposed.

        Raises:
            ProposalError: several forms, none and no proposer, or anything that does not fit the photo.
        """
        forms = {name: value for name, value in forms.items() if value is not None}
        if not forms:
            found = _read(rgb, self._proposer()(rgb))
            return found.select(found.areas > 0)
        if len(forms) > 1:
            raise ProposalError(f"give one of regions=, boxes=, rle= and points=, not {' and '.join(forms)}")
        if "points" in forms:
            return prompted(rgb, points=forms["points"], proposer=self._proposer())
        return given(rgb, **forms)

    def _proposer(self) -> Any:
        """The proposer, loaded when first needed."""
        if self._proposals is None:
            raise ProposalError(
                "no regions: give regions=, boxes= or rle= with the call, or name a proposer for the classifier"
            )
        if isinstance(self._proposals, str):
            encoder = self.backbone if self._proposals == "clusters" else None
            self._proposals = load_proposer(self._proposals, encoder=encoder, device=str(self.backbone.device))
        return self._proposals

    def policy(self, background: BackgroundSpec = "auto") -> Background:
        """The background policy of a call: the classifier's own for "auto".

        Raises:
            LabelError: unusable.
        """
        policy = self._segment.policy(background)
        if policy.foreground:
            raise OptionError("background 'foreground' tells pixels, and regions are named here; take another")
        return policy

    def embed_text(self, labels: LabelSet, policy: Background) -> TextEmbeddings:
        """Labels and background words as unit vectors, for photos to come; see `Segmenter.embed_text`.

        Raises:
            OptionError: text options that read the features of each photo.
        """
        self._segment.words.require_alone()
        return self._segment.embed_text(labels, policy)

    def facts(self) -> dict[str, Any]:
        """All that decides a result besides the photo, its regions and the labels, as resolved; ready for JSON."""
        scorer = self.scorer
        second = {"operator": scorer.second_look, "share": scorer.second_share, "top": scorer.second_top}
        return {
            **self._segment.facts(),
            **self.embedding_facts(),
            "options": {
                name: {key: digest.of_file(Path(value)) if key == "weights" else value for key, value in own.items()}
                for name, own in scorer.options.items()
            },
            "proposals": fitted.identity(self._named),
            "second_look": second if scorer.second_look is not None else None,
            "margin": self.margin,
            "clip_share": list(self.clip_share),
        }

    def embedding_facts(self) -> dict[str, Any]:
        """Of `facts`, how regions are embedded, for the meta of results."""
        dense = any(OPERATORS[name].dense for name in self.operators)
        return {
            "model": self.backbone.name,
            "reading": dict(self.backbone.reading),
            "operators": dict(self.operators),
            "options": self.scorer.options,
            "order": self.order,
            "recipe": repr(self.recipe) if dense and self.recipe is not None else None,
            "protocol": asdict(self.protocol),
        }

    def warnings(
        self, labels: Labels, background: BackgroundSpec = "auto", rgb: np.ndarray | None = None
    ) -> tuple[str, ...]:
        """What the user should know about these words, and about a uint8 RGB photo, a sentence each."""
        return self._segment.words.warnings(LabelSet.parse(labels), self.policy(background), rgb)

    def _meta(self, found: RegionEmbeddings, policy: Background) -> dict[str, Any]:
        return {
            "densevl": __version__,
            "image": found.source,
            **self.embedding_facts(),
            "templates": list(self._segment.templates),
            "background": str(policy),
            "second_look": self.scorer.second_look,
            "regions": len(found),
            "seconds": found.seconds,
        }


def _read(rgb: np.ndarray, proposed: Any) -> Proposals:
    """What a proposer returned: `Proposals`, masks, or an integer map."""
    size = (rgb.shape[0], rgb.shape[1])
    if isinstance(proposed, Proposals):
        return given(rgb, regions=proposed.select(proposed.areas > 0))
    if form_of(proposed, size) == "masks":
        return Proposals.from_masks(proposed, size)
    return given(rgb, regions=proposed)
