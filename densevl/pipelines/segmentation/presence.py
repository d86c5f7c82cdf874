"""Drop classes that `presence` judges absent before anything is decided (MaskCLIP's prompt denoising).

Shape letters: T strings, R regions.
"""

from __future__ import annotations

import torch

from densevl.inference.decoding import present
from densevl.vocabulary import NOTHING, LabelSet
from densevl.vocabulary.text_classifier import TextEmbeddings


def taking_part(
    scores: torch.Tensor, text: TextEmbeddings, labels: LabelSet, presence: float | None, scale: float
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Return the strings that take part, bool (T,), by scores (1, Y, X, T), and the names of the absent classes."""
    kept = torch.ones(scores.shape[-1], dtype=torch.bool, device=scores.device)
    if presence is None:
        return kept, ()
    found = present(scores, text.classes, len(labels), scale=scale, threshold=presence)[0]
    kept = (text.classes == NOTHING) | found[text.classes.clamp(min=0)]
    return kept, tuple(name for name, here in zip(labels.names, found.tolist(), strict=True) if not here)


def without_absent(
    logp: torch.Tensor, classes: torch.Tensor, labels: LabelSet, presence: float | None
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Mask classes that reach `presence` in no region out of log-probabilities (R, T); also return their names."""
    if presence is None or not len(logp):
        return logp, ()
    best = torch.zeros(len(labels), device=logp.device)
    owned = classes != NOTHING
    best.scatter_reduce_(0, classes[owned], logp[:, owned].exp().amax(dim=0), "amax")
    kept = ~owned | (best >= presence)[classes.clamp(min=0)]
    absent = tuple(name for name, p in zip(labels.names, best.tolist(), strict=True) if p < presence)
    return logp.masked_fill(~kept, -torch.inf).log_softmax(dim=1).nan_to_num(nan=-torch.inf), absent
