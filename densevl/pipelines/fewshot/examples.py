"""Convert examples and words to what heads learn from: features, class numbers, weights, and rows of words.

Shape letters: N features, C classes, D width of features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch.nn import functional as F

from densevl.errors import LabelError, suggest
from densevl.fewshot.pseudo import pseudo_labels
from densevl.fewshot.words import class_rows
from densevl.pipelines.fewshot.features import Features
from densevl.pipelines.segmentation.segmenter import Segmenter
from densevl.vocabulary import NOTHING, LabelSet
from densevl.vocabulary.parsing import short
from densevl.vocabulary.text_classifier import TextEmbeddings

GROUND = "background"  # stands for pixels that examples mark as nothing, if there are no background words


@dataclass(frozen=True, eq=False)
class Examples:
    """Features of examples.

    Attributes:
        names: of all classes. features: (N, D) float32 by kind. owners: (N,) int64, class index of each feature.
        weights: (N,) float32. places: (N,) indices among all unlabelled features; None if all have labels.
        pictures: one hash per whole image.
    """

    names: tuple[str, ...]
    features: dict[str, torch.Tensor]
    owners: torch.Tensor
    weights: torch.Tensor
    places: torch.Tensor | None = None
    pictures: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        features: Features,
        examples: Any,
        names: tuple[str, ...],
        known: Collection[str] = (),
        *,
        some: bool = True,
    ) -> Self:
        """Encode examples of some classes.

        Args:
            examples: as for `FewShot.fit`. known: classes that may show no feature, because they have others.
            some: whether there must be an example.

        Raises:
            LabelError: If there are no examples, a class is not in `names`, or none of its pixels fill a token.
        """
        none = not some and isinstance(examples, (Mapping, list, tuple)) and not examples
        for name in features.named(examples) if not none else ():
            if name not in names:
                near = suggest(name, names)
                raise LabelError(f"'{short(name)}' has examples but is not a label{near}; add it to labels")
        parts = list(features.rows(examples)) if not none else []
        owners = [name for part in parts for name in part.owners]
        lost = [name for part in parts for name in part.names if name not in {*owners, *known}]
        if lost:
            small = "fills no token of any example; lower coverage, or take level 'region'"
            raise LabelError(f"'{short(lost[0])}' {small}")
        if not owners:
            if some:
                raise LabelError("no examples: give at least one class some images")
            return cls(names, {}, torch.empty(0, dtype=torch.long), torch.empty(0))
        found = {kind: torch.cat([part.features[kind] for part in parts]) for kind in parts[0].features}
        device = next(iter(found.values())).device
        numbers = torch.tensor([names.index(name) for name in owners], device=device)
        weights = torch.cat([part.weights for part in parts]).to(device)
        pictures = frozenset().union(*(part.pictures for part in parts))
        return cls(names, found, numbers, weights, pictures=pictures)

    @classmethod
    def guessed(
        cls,
        features: Features,
        images: Sequence[Any],
        names: tuple[str, ...],
        text: torch.Tensor,
        *,
        how: str,
        count: int | None,
        projection: torch.Tensor | None = None,
    ) -> Self:
        """Label features of unlabelled images by words; see `fewshot.pseudo`.

        If there are several kinds of feature, words are compared with the first.

        Args:
            text: rows of the classes, then of none of them. projection: maps features to the joint space.

        Raises:
            LabelError: If words name nothing as one of the classes.
        """
        parts = list(features.unnamed(images))
        found = {kind: torch.cat([part[kind] for part in parts]) for kind in features.scales if parts}
        if not found:
            raise LabelError("no images without labels: give a folder, or some files")
        kind, rows = next(iter(found.items()))
        rows = rows if projection is None else rows @ projection.to(rows)
        labels = pseudo_labels(how, rows, text, scale=features.scales[kind], count=count).labels
        kept = ((labels >= 0) & (labels < len(names))).nonzero().flatten()
        if not len(kept):
            raise LabelError(f"none of {len(rows)} features is nearest to one of the labels: name what the images show")
        few = {kind: rows[kept] for kind, rows in found.items()}
        return cls(names, few, labels[kept], torch.ones(len(kept), device=kept.device), kept)

    @property
    def counts(self) -> Counter[str]:
        """Number of features of each class."""
        return Counter(self.names[index] for index in self.owners.tolist())


def text_rows(segmenter: Segmenter, level: str, labels: LabelSet, *, shown: bool) -> torch.Tensor:
    """Return unit rows of words (C + K, D), one per class, then, except for whole images, those of no class.

    Args:
        shown: whether examples show what is no class. It then has one row, the mean of the background words.
    """
    text = class_rows(_embedded(segmenter, labels, shown), len(labels))
    if level == "image":
        return text[: len(labels)]  # an image is always one of the classes
    if not shown:
        return text
    rest = F.normalize(text[len(labels) :].mean(dim=0, keepdim=True), dim=-1)
    return torch.cat([text[: len(labels)], rest])


def row_strings(segmenter: Segmenter, level: str, labels: LabelSet, *, shown: bool) -> list[list[str]]:
    """Return the strings of each row of `text_rows`, which has the same arguments."""
    text = _embedded(segmenter, labels, shown)
    classes = [list(words) for words in labels.synonyms]
    rest = [query for query, owner in zip(text.queries, text.classes.tolist(), strict=True) if owner == NOTHING]
    if level == "image":
        return classes
    return [*classes, *([rest] if shown else [[word] for word in rest])]


def _embedded(segmenter: Segmenter, labels: LabelSet, shown: bool) -> TextEmbeddings:
    policy = segmenter.background
    if shown:
        policy = replace(policy, words=policy.words or (GROUND,), unknown=False)
    return segmenter.embed_text(labels, policy)


def no_words(examples: Examples, model: str, known: Collection[str] = ()) -> torch.Tensor:
    """Return zero rows (C, D) in place of words, for a model without words. `known`: classes that have examples.

    Raises:
        LabelError: If a class has no examples.
    """
    taught = {*examples.counts, *known}
    missing = next((name for name in examples.names if name not in taught), None)
    if missing is not None:
        raise LabelError(
            f"'{short(missing)}' has no examples, and model '{model}' cannot compare whole images with words"
        )
    rows = examples.features["image"]
    return rows.new_zeros(len(examples.names), rows.shape[1])
