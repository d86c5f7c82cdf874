"""TextSpan: the words along which a head varies most over images (Gandelsman et al., ICLR 2024, algorithm 1).

Shape letters: K images, E joint space, T texts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

RANK = 80
"""Directions of a head's outputs that texts are projected on."""
VANISHED = 1e-6
"""Of its length before: a text that is shorter is in the span of those that were taken."""


class Spanned(NamedTuple):
    """A text that a head speaks of. Attributes: text: its number; share: of the head's variance, 0..1."""

    text: int
    share: float


def text_span(outputs_KE: torch.Tensor, texts_TE: torch.Tensor, most: int, rank: int = RANK) -> list[Spanned]:
    """Choose texts one after another, each along the largest variance that those before leave.

    Args:
        outputs_KE: what a head adds to the embeddings of images. texts_TE: unit rows.
        most: how many texts; there are fewer where nothing is left.
        rank: texts are projected on so many leading directions of the outputs, never more than there are.
    """
    data, texts = outputs_KE.double(), texts_TE.double()
    _, values, rows = torch.linalg.svd(data, full_matrices=False)
    rows = rows[: min(rank, int((values > VANISHED * values[:1]).sum()))]
    texts = texts @ rows.mT @ rows
    least = VANISHED * texts.norm(dim=1).max()
    data = data - data.mean(dim=0)
    whole = float(data.square().sum())
    found: list[Spanned] = []
    for _ in range(min(most, len(texts))):
        spread_T = (data @ texts.mT).std(dim=0, correction=0)
        spread_T[texts.norm(dim=1) <= least] = 0
        best = int(spread_T.argmax())
        if not whole or not spread_T[best] > 0:
            break
        row = texts[best] / texts[best].norm()
        along_K = data @ row
        found.append(Spanned(best, float(along_K.square().sum()) / whole))
        data = data - along_K[:, None] * row
        texts = texts - (texts @ row)[:, None] * row
    return found
