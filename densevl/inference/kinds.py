"""Words and pictures in one vocabulary: their scores on one scale.

A photo is nearer to any picture than to the words for its contents (the modality gap, Liang et al., NeurIPS 2022). With
raw cosines, one unrelated picture beats the right word on half of a photo. So each kind is standardised over the photo:
a place is compared by how much more it resembles a thing than the photo as a whole does. Shape letters: T rows.
"""

from __future__ import annotations

import torch

from densevl.vocabulary.text_classifier import TextEmbeddings


def levelled(scores: torch.Tensor, text: TextEmbeddings, over: torch.Tensor | None = None) -> torch.Tensor:
    """Give the scores (..., T) of pictures the mean and spread of those of words, which stay as they are.

    Args:
        text: a vocabulary; if all its rows are of one kind, nothing changes.
        over: scores (..., T) of places all over the photo, for the mean and the spread; None takes `scores`.
    """
    if text.shown is None:
        return scores
    over = scores if over is None else over
    shown, words = over[..., text.shown], over[..., ~text.shown]
    ratio = words.std(correction=0) / shown.std(correction=0).clamp(min=1e-6)
    return torch.where(text.shown, (scores - shown.mean()) * ratio + words.mean(), scores)
