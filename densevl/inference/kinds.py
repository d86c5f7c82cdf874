"""Words and pictures in one vocabulary: their scores on one scale.

What a photo shows is nearer to any picture than to the words for it (the modality gap, Liang et al., NeurIPS 2022): of
raw cosines one unrelated picture beats the right word on half of a photo. So each kind is standardised over the photo,
and what is compared is by how much a place is more like a thing than the photo is on the whole. Shape letters: T rows.
"""

from __future__ import annotations

import torch

from densevl.vocabulary.text_classifier import TextEmbeddings


def levelled(scores: torch.Tensor, text: TextEmbeddings, over: torch.Tensor | None = None) -> torch.Tensor:
    """Scores (..., T) in which those of pictures have the mean and the spread of those of words; these stay.

    Args:
        text: a vocabulary; of one kind alone, nothing is changed.
        over: scores (..., T) of places all over the photo, of which mean and spread are taken; None is `scores`.
    """
    if text.shown is None:
        return scores
    over = scores if over is None else over
    shown, words = over[..., text.shown], over[..., ~text.shown]
    ratio = words.std(correction=0) / shown.std(correction=0).clamp(min=1e-6)
    return torch.where(text.shown, (scores - shown.mean()) * ratio + words.mean(), scores)
