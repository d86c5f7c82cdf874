"""The text side of few-shot heads: one row for each class, then the strings that are no class."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densevl.vocabulary import NOTHING
from densevl.vocabulary.text_classifier import TextEmbeddings


def class_rows(text: TextEmbeddings, count: int) -> torch.Tensor:
    """Unit rows (count + K, D): for each class the mean of its strings, then the K strings of none, as they are."""
    owned = text.classes != NOTHING
    member_CT = F.one_hot(text.classes[owned], count).mT.to(text.vectors)
    return torch.cat([F.normalize(member_CT @ text.vectors[owned], dim=-1), text.vectors[~owned]])


def as_text(rows: torch.Tensor, names: tuple[str, ...]) -> TextEmbeddings:
    """Rows of `class_rows` as a vocabulary of one string a class."""
    rest = len(rows) - len(names)
    classes = torch.tensor([*range(len(names)), *[NOTHING] * rest], device=rows.device)
    return TextEmbeddings(rows, classes, (*names, *["nothing"] * rest))
