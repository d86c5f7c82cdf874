"""Write words for an exported model: `words.npz`, which can be read without torch or a text tower."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from densevl.backbones import Backbone
from densevl.backbones.exported import WORDS
from densevl.files import atomic_write
from densevl.vocabulary import Background, LabelSet
from densevl.vocabulary.text_classifier import TextClassifier


def words_path(model: Path) -> Path:
    """Return the path of the words of a model's file: "mini.words.npz" for "mini.onnx"."""
    return model.with_suffix(WORDS)


def save_words(
    path: Path,
    backbone: Backbone,
    labels: LabelSet,
    *,
    background: Background | None = None,
    templates: str | None = None,
) -> Path:
    """Embed labels, and write what a program needs to know about them.

    Args:
        background: words that compete; None takes the model's own.

    Returns:
        The path of an .npz file: names (C,) of the classes; vectors (T, D) float32, unit rows, at least two; classes
        (T,) int64, the class of each row, -1 for background words; queries (T,), the strings; way, trust and why (T,),
        how the model knows them (`backbones.reach`); templates (M,), the sentences they were put into; text_side, a
        hash of the text tower.
    """
    classifier = TextClassifier(backbone, templates)
    policy = Background.parse(backbone.background) if background is None else background
    text = classifier.encode(labels, policy)
    rows = list(range(len(text.queries))) * (2 if len(text.queries) == 1 else 1)  # a graph needs at least two words
    queries = [str(text.queries[row]) for row in rows]
    reaches = backbone.reach(queries)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        names=np.array(labels.names),
        vectors=text.vectors.cpu().numpy()[rows].astype(np.float32),
        classes=text.classes.cpu().numpy()[rows],
        queries=np.array(queries),
        way=np.array([reach.way for reach in reaches]),
        trust=np.array([reach.trust for reach in reaches]),
        why=np.array([reach.why for reach in reaches]),
        templates=np.array(classifier.templates),
        text_side=np.array(backbone.text_fingerprint),
    )
    return atomic_write(path, buffer.getvalue())
