"""A model's scores of a photo and its parts against words, in each of several ways.

Ways: "image", the vector of the whole photo; "crop", an object's mask cut out and encoded; "pool", the mean of dense
features or scores over the mask; "cls_mask", a copy of CLS that sees only the mask.

Shape letters: R objects, C classes, E joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from densevl.errors import EvaluationError
from densevl.evaluation.analyses.base import Mask, Picture
from densevl.evaluation.analyses.objects import box_of
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.predictors import ConceptPredictor, Predictor
from densevl.evaluation.tasks.base import pipeline_of
from densevl.pipelines.feeding import embed_images
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.regions.scores import default_operators
from densevl.pipelines.settings import NAME_FIRST
from densevl.proposals import Proposals
from densevl.regions.naming import log_probs
from densevl.regions.operators.dense import has_features
from densevl.vocabulary import LabelSet
from densevl.vocabulary.text_classifier import AS_IT_IS, TextClassifier, TextEmbeddings

Floats = npt.NDArray[np.float64]
IMAGE, CROP, POOL, CLS_MASK = "image", "crop", "pool", "cls_mask"
WAYS = {
    IMAGE: "vector of the whole photo",
    CROP: "each object cut out and encoded",
    POOL: "dense features averaged over the object",
    CLS_MASK: "a copy of CLS that sees the object only",
}


class Looks(Protocol):
    """The interface that analyses of objects need of a model. Attributes: ways, of `WAYS`, "image" first."""

    ways: tuple[str, ...]

    def words(self, labels: LabelSet, *, bare: bool = False) -> Any:
        """Encode labels for `__call__`; `bare` leaves out prompt templates."""

    def __call__(self, rgb: Picture, masks: Sequence[Mask], words: Any) -> dict[str, Floats]:
        """Scores (R, C) of each object by way; with "image" all rows are the photo's."""

    def likeness(self, left: Sequence[str], right: Sequence[str]) -> Floats | None:
        """Cosines (N,) of pairs of texts; None for a model without vectors of texts."""


@dataclass(frozen=True, eq=False)
class _Words:
    text: TextEmbeddings
    count: int


class ModelLooks:
    """The ways of a model that was loaded for a semantic experiment."""

    def __init__(self, predictor: Predictor | ConceptPredictor, asked: Experiment) -> None:
        """Args: asked: its settings, all filled in.

        Raises:
            EvaluationError: it is a concept model.
            OptionError: text options need each photo.
        """
        if isinstance(predictor, ConceptPredictor):
            raise EvaluationError("a model that judges each text at each pixel has no vectors of photos and objects")
        segmenter = predictor.segmenter
        segmenter.words.require_alone()
        self._backbone = segmenter.backbone
        settings = pipeline_of(asked, None)
        for own in ("weights", "device", "precision", "presence", "compat"):  # already in the backbone and recipe
            settings.pop(own)
        settings |= {"recipe": segmenter.recipe, "proxy": segmenter.proxy, "sam": segmenter.sam, "proposals": None}
        self._vectors: RegionClassifier | None = None
        self._places: RegionClassifier | None = None
        self.ways: tuple[str, ...] = (IMAGE, CROP, POOL)
        if segmenter.recipe is not None:
            operators = [CROP, *([POOL] if has_features(segmenter.recipe) else [])]
            if CLS_MASK in default_operators(self._backbone):
                operators.append(CLS_MASK)
                self.ways += (CLS_MASK,)
            self._vectors = RegionClassifier(self._backbone, "+".join(operators), **settings)
        if not has_features(segmenter.recipe):
            self._places = RegionClassifier(self._backbone, POOL, order=NAME_FIRST, **{**settings, "views": None})
        options = segmenter.words.classifier.options
        self._text = TextClassifier(self._backbone, asked.templates, options)
        self._bare = TextClassifier(self._backbone, AS_IT_IS, options)

    def words(self, labels: LabelSet, *, bare: bool = False) -> _Words:
        """See `Looks`."""
        return _Words((self._bare if bare else self._text).encode(labels), len(labels))

    def __call__(self, rgb: Picture, masks: Sequence[Mask], words: _Words) -> dict[str, Floats]:
        """See `Looks`."""
        image_scores = self._judged(F.normalize(embed_images(self._backbone, [rgb]), dim=1), words)
        found = {IMAGE: image_scores.repeat(len(masks), axis=0) if masks else image_scores}
        if not masks:
            return found
        regions = Proposals.from_masks(np.stack(masks))
        if self._vectors is not None:
            embedded = self._vectors.embed(rgb, regions=regions)
            scorer = self._vectors.scorer
            found |= {name: self._judged(rows, words, scorer.scale(name)) for name, rows in embedded.vectors.items()}
        else:
            boxes = [box_of(mask) for mask in masks]
            pieces = embed_images(self._backbone, [rgb[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes])
            found[CROP] = self._judged(F.normalize(pieces, dim=1), words)
        if self._places is not None:
            judged = self._places.scorer.judge(self._places.embed(rgb, regions=regions), words.text)
            found[POOL] = _by_class(judged, words)
        return {way: found[way] for way in self.ways}

    def likeness(self, left: Sequence[str], right: Sequence[str]) -> Floats | None:
        """See `Looks`."""
        if self._backbone.default_recipe is None:
            return None
        texts = list(dict.fromkeys([*left, *right]))
        rows = self._text.encode(LabelSet(tuple(texts), tuple((text,) for text in texts))).vectors
        at = {text: index for index, text in enumerate(texts)}
        pairs = rows[[at[text] for text in left]] * rows[[at[text] for text in right]]
        return pairs.sum(dim=1).double().cpu().numpy()

    def _judged(self, rows: torch.Tensor, words: _Words, scale: float | None = None) -> Floats:
        return _by_class(log_probs(rows, words.text, scale or self._backbone.logit_scale), words)


def _by_class(logp_RT: torch.Tensor, words: _Words) -> Floats:
    """Scores (R, C): a class has the score of its best string."""
    scores = np.full((len(logp_RT), words.count), -np.inf)
    classes = words.text.classes.cpu().numpy()
    for column, own in zip(logp_RT.double().cpu().numpy().T, classes, strict=True):
        if own >= 0:
            np.maximum(scores[:, own], column, out=scores[:, own])
    return scores
