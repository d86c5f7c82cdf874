"""Examples and words in the form in which heads learn from them: features, class numbers, weights, and rows of words.

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

GROUND = "background"  # the word for what examples show to be nothing, where there are no background words


@dataclass(frozen=True, eq=False)
class Examples:
    """What examples show.

    Attributes:
        names: of all classes. features: (N, D) float32 by kind. owners: (N,) int64, the number of each one's class.
        weights: (N,) float32. places: (N,) which of all features without labels these are; None where all have some.
        pictures: of whole images, a hash of each.
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
            examples: as `FewShot.fit` takes them. known: classes that may show no feature, for they have others.
            some: whether there must be an example.

        Raises:
            LabelError: no examples, a class that is not in `names`, or one none of whose pixels fill a token.
        """
        none = not some and isinstance(examples, (Mapping, list, tuple)) and not examples
        for name in features.named(examples) if not none else ():
            if name not in names:
                near = suggest(name, names)
                raise LabelError(f"'{short(name)}' is named by the examples and is no label{near}; add it to labels")
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
        """Features of images without labels, named by words; see `fewshot.pseudo`.

        Of several kinds of feature the first is what words are compared with.

        Args:
            text: rows of the classes, then of what is none. projection: leads features to the joint space.

        Raises:
            LabelError: nothing that words name as one of the classes.
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
            raise LabelError(f"none of {len(rows)} features is likest one of the labels: name what the images show")
        few = {kind: rows[kept] for kind, rows in found.items()}
        return cls(names, few, labels[kept], torch.ones(len(kept), device=kept.device), kept)

    @property
    def counts(self) -> Counter[str]:
        """How many there are of each class."""
        return Counter(self.names[index] for index in self.owners.tolist())


def text_rows(segmenter: Segmenter, level: str, labels: LabelSet, *, shown: bool) -> torch.Tensor:
    """Unit rows of words (C + K, D), a class each; then, but for whole images, those of what is no class.

    Args:
        shown: examples show what is no class: it has one row then, the mean of the background words.
    """
    text = class_rows(_embedded(segmenter, labels, shown), len(labels))
    if level == "image":
        return text[: len(labels)]  # an image is always one of the classes
    if not shown:
        return text
    rest = F.normalize(text[len(labels) :].mean(dim=0, keepdim=True), dim=-1)
    return torch.cat([text[: len(labels)], rest])


def row_strings(segmenter: Segmenter, level: str, labels: LabelSet, *, shown: bool) -> list[list[str]]:
    """The strings of each row of `text_rows`, which takes the same."""
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
    """Rows (C, D) of words that say nothing, for a model that has none. Args: known: classes that have examples.

    Raises:
        LabelError: a class without examples.
    """
    taught = {*examples.counts, *known}
    missing = next((name for name in examples.names if name not in taught), None)
    if missing is not None:
        raise LabelError(f"'{short(missing)}' has no examples, and model '{model}' has no words for whole images")
    rows = examples.features["image"]
    return rows.new_zeros(len(examples.names), rows.shape[1])
