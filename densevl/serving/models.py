"""The models of one device, and the jobs that requests become. Everything allowed is loaded at the start."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from densevl import digest
from densevl.anomaly.result import AnomalyResult
from densevl.anomaly.scoring import get_scoring
from densevl.backbones import Backbone, load_backbone
from densevl.errors import DensevlError, ImageError, ModelError, OptionError, ProposalError, one_of
from densevl.fewshot.result import Classification
from densevl.images import read_image
from densevl.pipelines.anomaly.detector import AnomalyDetector
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.fewshot.session import LabelSession
from densevl.pipelines.many import hearing
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.regions.prompting import prompted
from densevl.pipelines.segmentation import refinement
from densevl.pipelines.segmentation.evidence import Prepared
from densevl.pipelines.segmentation.segmenter import Segmenter
from densevl.pipelines.segmentation.segments import MINI
from densevl.proposals import NAMES, Proposer, load_proposer
from densevl.recipes import get
from densevl.regions.result import RegionResult
from densevl.results import UNLABELLED, SegmentationResult
from densevl.serving.settings import MEGABYTE, Limits, Settings
from densevl.serving.worker import Job, alone
from densevl.vocabulary import Background, LabelSet

ALTERNATIVES = 5
FITTED = 4  # detectors kept with their memory of normal images
RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Segmented:
    """A label map, with the likeliest classes (k, h, w) of a coarse grid, -1 for nothing, and their probabilities."""

    result: SegmentationResult
    classes: npt.NDArray[np.int16]
    chances: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Asked:
    """A photo and its request. Attributes: segmenter: has the settings of the request."""

    segmenter: Segmenter
    photo: Prepared | RGB
    labels: LabelSet
    policy: Background


class Models:
    """The models served on one device."""

    def __init__(self, settings: Settings, device: str | None) -> None:
        """Load everything that is allowed, and run each model once.

        Raises:
            DensevlError: If something cannot be loaded.
        """
        for recipe in settings.recipes:  # mistyped names fail before a model loads
            get(recipe)
        for proposer in settings.proposals:
            one_of(proposer, NAMES, "proposals", OptionError)
        get_scoring(settings.scoring)
        refinement.parse(settings.refine, upsampling=False)
        self.settings = settings
        self.backbones: dict[str, Backbone] = {}
        for name in settings.models:
            backbone = load_backbone(name, device=device, precision=settings.precision)
            if backbone.name in self.backbones:
                raise OptionError(f"two of the models are named '{backbone.name}'; clients could not tell them apart")
            self.backbones[backbone.name] = backbone  # not the given name, which may be a path
        self.device = next(iter(self.backbones.values())).device
        self.proposers: dict[str, Proposer | str] = {
            name: name if name == "clusters" else load_proposer(name, device=str(self.device))
            for name in settings.proposals
        }
        self.segmenters: dict[tuple[str, str | None], Segmenter] = {}
        self.regions: dict[tuple[str, str], RegionClassifier] = {}
        self.namers: dict[str, FewShot] = {}
        self._fitted: OrderedDict[str, AnomalyDetector] = OrderedDict()
        for name, backbone in self.backbones.items():
            self._build(name, backbone)

    def _build(self, name: str, backbone: Backbone) -> None:
        takes = backbone.default_recipe is not None
        finder = next(iter(self.proposers.values()), None)
        for recipe in self.settings.recipes if takes and self.settings.recipes else (backbone.default_recipe,):
            own: dict[str, Any] = {"refine": self.settings.refine, "proposals": finder if takes else None}
            self.segmenters[name, recipe] = Segmenter(backbone, recipe, **own)
        for proposer, loaded in self.proposers.items():
            recipe = self.recipes(name)[0]
            self.regions[name, proposer] = RegionClassifier(backbone, recipe=recipe, proposals=loaded)
        if takes:
            self.namers[name] = FewShot(backbone)
        for (own_name, _), segmenter in self.segmenters.items():
            if own_name == name:
                segmenter(np.zeros((32, 32, 3), np.uint8), [next(iter(getattr(backbone, "words", None) or ["thing"]))])

    def recipes(self, model: str) -> list[str | None]:
        """Return the recipes of a model, the default first; [None] if it uses none."""
        return [recipe for name, recipe in self.segmenters if name == model]

    def tasks(self, model: str) -> list[str]:
        """Return the tasks a model can do."""
        named = ["regions"] if self.proposers else []
        return ["segment", *named, "anomaly", *(["classify", "session"] if model in self.namers else [])]

    def segment(
        self, rgb: RGB, labels: LabelSet, model: str, recipe: str, background: Any, presence: float | None
    ) -> Job:
        """Create the job of segmenting a uint8 RGB photo; see `Segmented`.

        Raises:
            ModelError, RecipeError, OptionError: If something is not allowed or impossible.
        """
        model = self._model(model)
        chosen = recipe or self.recipes(model)[0]
        if (model, chosen) not in self.segmenters:
            one_of(chosen, [name or "none" for name in self.recipes(model)], "recipe", OptionError)
        segmenter = self.segmenters[model, chosen]
        if presence is not None:
            segmenter = copy.copy(segmenter)  # keeps its cached words
            segmenter.presence = presence
        policy = segmenter.policy(background)
        share = segmenter.share(rgb)
        if not segmenter.separable or share >= 1:
            return Job(_segment, _Asked(segmenter, rgb, labels, policy))
        photo = segmenter.prepare(rgb)
        kind = ("segment", model, chosen, photo.windows.window)
        return Job(_segment, _Asked(segmenter, photo, labels, policy), kind, share)

    def name_regions(
        self,
        rgb: RGB,
        labels: LabelSet | None,
        model: str,
        proposals: str,
        background: Any,
        boxes: Sequence[Sequence[float]],
        points: Sequence[Sequence[float]],
        objects: bool,
    ) -> Job:
        """Create the job of naming regions of a uint8 RGB photo, at boxes and points or proposed; see `RegionResult`.

        Raises:
            ModelError, OptionError: If something is not allowed or impossible.
        """
        proposer = proposals or next(iter(self.proposers), "")
        one_of(proposer, self.proposers, "proposals", OptionError)
        classify = self.regions[self._model(model), proposer]
        loaded = self.proposers[proposer]
        if points and not hasattr(loaded, "prompt"):
            raise OptionError(f"points need proposals that turn them into masks, and '{proposer}' does not")
        policy = classify.policy(background)
        clicked = bool(len(boxes) or len(points))

        @hearing
        def call() -> RegionResult:
            given: dict[str, Any] = {}
            if clicked:
                given["regions"] = prompted(rgb, points=points, boxes=boxes, proposer=loaded)
            if labels is None:
                return classify.discover(rgb, overlap=1.0 if clicked else 0.5, **given)
            result = classify(rgb, labels, background=policy, **given)
            return result.instances() if objects and not clicked else result

        return Job(partial(alone, call))

    def score(self, rgb: RGB, item: str, normal: Sequence[RGB], model: str, fpr: float) -> Job:
        """Create the job of scoring a uint8 RGB image by words or against normal images; see `AnomalyResult`.

        Raises:
            ModelError: If something is not allowed or impossible.
        """
        name = self._model(model)
        clip = self.backbones[name].default_recipe is not None
        if not clip and not normal:
            raise ModelError(f"model '{name}' is not a CLIP, so it cannot find anomalies by words: give normal images")
        key = repr((name, item, fpr, [(one.shape, digest.of_bytes(one.tobytes())) for one in normal]))

        def call() -> AnomalyResult:
            detect = self._fitted.get(key)
            if detect is None:
                scoring = self.settings.scoring if clip else "dino"
                detect = AnomalyDetector(self.backbones[name], scoring, item=item)
                if normal:
                    detect.fit(normal).calibrate(fpr)
            self._fitted[key] = detect
            self._fitted.move_to_end(key)
            while len(self._fitted) > FITTED:
                self._fitted.popitem(last=False)
            return detect(rgb)

        return Job(partial(alone, call))

    def classify(self, rgb: RGB, labels: LabelSet, model: str) -> Job:
        """Create the job of classifying a whole uint8 RGB photo; see `Classification`.

        Raises:
            ModelError: If something is not allowed or impossible.
        """
        name = self._model(model)
        if name not in self.namers:
            raise ModelError(f"model '{name}' is not a CLIP: it cannot compare whole images with words")

        def call() -> Classification:
            return self.namers[name](rgb, labels)  # type: ignore[return-value]

        return Job(partial(alone, call))

    def session(self, labels: LabelSet, model: str, recipe: str, background: Any, megabytes: int) -> LabelSession:
        """Start a labelling session with a memory limit.

        Raises:
            ModelError, RecipeError, OptionError: If something is not allowed or impossible.
        """
        name = self._model(model)
        chosen = recipe or self.recipes(name)[0]
        one_of(chosen, [own or "none" for own in self.recipes(name)], "recipe", OptionError)
        finder = next((one for one in self.proposers.values() if hasattr(one, "prompt")), None)
        own: dict[str, Any] = {"recipe": chosen, "background": background, "refine": self.settings.refine}
        proposals = (
            MINI if getattr(finder, "name", None) == MINI else finder
        )  # small, and sessions need their own settings
        return LabelSession(self.backbones[name], labels, proposals=proposals, most=megabytes, **own)

    def _model(self, name: str) -> str:
        chosen = name or next(iter(self.backbones))
        one_of(chosen, self.backbones, "model", OptionError)
        return chosen


def photo(data: bytes, name: str | None, limits: Limits) -> RGB:
    """Decode an uploaded image to uint8 RGB (H, W, 3).

    Raises:
        ImageError: If it is unreadable or larger than allowed.
    """
    name = name or "the photo"
    rgb = read_image(data, max_pixels=limits.pixels * MEGABYTE, name=name, bits=limits.bits)
    height, width = rgb.shape[:2]
    if max(height, width) > limits.side:  # the memory of decoding grows with the square of a side
        raise ImageError(
            f"{name} is {width}x{height}; this server takes at most {limits.side:,} pixels per side: crop it"
        )
    return rgb


def _segment(asked: Sequence[_Asked]) -> list[Segmented]:
    """Segment photos that share a pass, or a single one that does not."""
    found: list[Segmented] = []
    photos = [one.photo for one in asked if isinstance(one.photo, Prepared)]
    dense = asked[0].segmenter.run(torch.cat([each.parts for each in photos])) if photos else None
    start = 0
    for one in asked:
        segmenter = one.segmenter
        if isinstance(one.photo, Prepared) and dense is not None:
            own = slice(start, start + len(one.photo.parts))
            start, rgb, segments = own.stop, one.photo.rgb, None
            evidence = segmenter.gather(one.photo, dense.part(own), one.labels, one.policy)
        else:
            rgb = one.photo  # type: ignore[assignment]
            segments = segmenter.segments(rgb)
            evidence = segmenter.look(rgb, one.labels, one.policy, segments)
        result = segmenter.decide(evidence, rgb, one.labels, one.policy, segments)
        found.append(Segmented(result, *result.top(ALTERNATIVES)))
    return found


Edit = tuple[int, int, str]
"""x, y and a name: the region at that pixel certainly has that class."""


def corrected(found: Segmented, edits: Sequence[Edit]) -> Segmented:
    """Rename regions of a label map, that is, connected pixels of one label.

    Raises:
        DensevlError: If a pixel is outside the photo.
        LabelError: If a name is unusable.
    """
    from scipy import ndimage

    result = found.result
    labels, confidence, names = result.labels.copy(), result.confidence.copy(), list(result.names)
    for x, y, name in edits:
        _inside(x, y, labels.shape)
        number = _number(name, names)
        pieces, _ = ndimage.label(labels == labels[y, x])
        region = pieces == pieces[y, x]
        labels[region], confidence[region] = number, 1
    changes: dict[str, Any] = {"labels": labels, "names": tuple(names), "confidence": confidence}
    changes["meta"] = _noted(result.meta, edits)
    return replace(found, result=replace(result, **changes, scores_fn=None, chances_fn=None))


def renamed(result: RegionResult, edits: Sequence[Edit]) -> RegionResult:
    """Rename the regions that are on top at some pixels.

    Raises:
        DensevlError: If a pixel is outside the photo, or has no region.
        LabelError: If a name is unusable.
    """
    seen, names = result.regions.segment_map(), list(result.names)
    labels, confidence = result.labels.copy(), result.confidence.copy()
    for x, y, name in edits:
        _inside(x, y, seen.shape)
        if not seen[y, x]:
            raise ProposalError(f"there is no region at pixel ({x}, {y})")
        labels[seen[y, x] - 1], confidence[seen[y, x] - 1] = _number(name, names), 1
    scores = np.pad(result.scores, ((0, 0), (0, len(names) - len(result.names))))
    changed = (labels != result.labels) | (confidence != result.confidence)
    scores[changed] = 0
    scores[changed & (labels >= 0), labels[changed & (labels >= 0)]] = 1
    return replace(
        result,
        names=tuple(names),
        scores=scores,
        nothing=np.where(changed, labels < 0, result.nothing).astype(np.float32),
        labels=labels,
        confidence=confidence,
        meta=_noted(result.meta, edits),
        rename_fn=None,
        dense_fn=None,
    )


def _inside(x: int, y: int, size: tuple[int, ...]) -> None:
    if not (0 <= y < size[0] and 0 <= x < size[1]):
        raise DensevlError(f"pixel ({x}, {y}) is outside the photo of {size[1]} x {size[0]} pixels")


def _number(name: str, names: list[str]) -> int:
    """Return the index of a class, -1 for "nothing". A new name is added."""
    if name.strip() == UNLABELLED:
        return -1
    (name,) = LabelSet.parse([name]).names
    names += [] if name in names else [name]
    return names.index(name)


def _noted(meta: dict[str, Any], edits: Sequence[Edit]) -> dict[str, Any]:
    return {**meta, "edits": [list(edit) for edit in edits]}
