"""From class probabilities and word rows to word scores, with a channel for "none of these words".

Shape letters: B batch, K the 1000 classes, h/w score grid, T words.

How the constants came about: 125 PASCAL-VOC photos (up to 8 a class, animals dominate), the 20 VOC names from the alias
table, scores upsampled bilinearly, no affinity; mIoU over the classes present.

    background ignored                      mIoU    constant
    mean over a word's rows, no prior       32.9
    + 3x3 mean of the evidence              35.6    (5x5, with all else in place: no change, but whole close-ups)
    + image-level prior, weight 1           43.9    (weight 2: 42.3)
    mean x members^0.25                     48.6    BREADTH (0.5: 48.7 and less accuracy; 1, a sum: 24 before smoothing)

    with background                         all 20 names        names present + 2 others
    threshold -6.5 / -6 / -5.5 / -5 / -4    25.6 25.8 25.9 25.9 25.1    29.2 29.0 28.7 28.5 27.0
    3x3 instead of 5x5                      25.9 26.1 26.1 25.8 24.6    29.7 29.5 29.1 28.4 26.6
    3x3, no RIVALRY, best threshold         26.0                        30.4, but specks of absent words

On 121 other VOC photos (18 classes): background ignored 41.5, with background 23.9 and 27.0; with the affinity 45.0,
30.1 and 30.1. The affinity's threshold was compared there (-5.5 26.4, -6 28.1, -6.5 30.1), so that one is not blind.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

# Between the mean over a word's rows (0), which starves words with many rows, and their sum (1), which feeds them.
BREADTH = 0.25
# A word that lies a little on every class gets no more evidence than one that lies on this many.
MAX_SPREAD = 10.0
# How much of the evidence comes from the whole photo, and how much a stronger class that no word means takes away.
# Neither moves VOC by half a point; both remove specks of absent words.
PRESENCE = 0.4
RIVALRY = 0.6
# Bounds the unknown channel around the best word, so that one cell cannot shout over its neighbours when upsampled.
MARGIN = 8.0
_FLOOR = 1e-6


class Tuning(NamedTuple):
    """What differs with and without the affinity.

    Attributes:
        radius: cells on each side of the square mean that evidence is smoothed with.
        threshold: log evidence under which a place is unknown; see `_margin`. Lower keeps more of an object and lets in
            more specks of absent words.
    """

    radius: int
    threshold: float


# From -6.5 to -4.5 VOC hardly moves. "dog", of the VOC names, takes 15 % of the coffee photo at -6 and 6 % at -5.5.
PLAIN = Tuning(2, -5.5)
# The affinity smooths and keeps edges; it averages specks away, and with them some evidence at the rim of objects.
SPREAD = Tuning(1, -6.5)


def unknown_row(classes: int) -> torch.Tensor:
    """The row (K,) that asks for the unknown channel: it points away from every word, so its sign tells it apart."""
    return torch.full((classes,), -(classes**-0.5))


def score(probabilities_BKhw: torch.Tensor, rows_TK: torch.Tensor, affinity: torch.Tensor | None) -> torch.Tensor:
    """Score T rows at every place.

    Args:
        probabilities_BKhw: class probabilities at each place, 0..1.
        rows_TK: word rows, non-negative, at any positive scale, and unknown rows among them.
        affinity: (B, h*w, h*w), rows sum to 1, or None.

    Returns:
        (B, h, w, T) float32 log scores; a word row of zeros never wins.
    """
    unknown_T = rows_TK.sum(-1) < 0
    tuning = PLAIN if affinity is None else SPREAD
    share_TK, members_T = _shares(rows_TK.float().clamp(min=0))
    local_BThw = _smooth(torch.einsum("bkhw,tk->bthw", probabilities_BKhw, share_TK), tuning.radius)
    image_BT = probabilities_BKhw.mean((2, 3)) @ share_TK.T
    weight_T = members_T**BREADTH
    scores_BThw = (local_BThw * weight_T[:, None, None] + _FLOOR).log()
    scores_BThw = scores_BThw + (image_BT * weight_T + _FLOOR).log()[:, :, None, None]
    if torch.compiler.is_exporting() or unknown_T.any():
        scores_BThw = scores_BThw.masked_fill(unknown_T[:, None, None], -torch.inf)
        best_B1hw = scores_BThw.argmax(1, keepdim=True)
        here_B1hw = (local_BThw * members_T[:, None, None]).gather(1, best_B1hw)
        photo_B1hw = (image_BT * members_T)[:, :, None, None].expand_as(local_BThw).gather(1, best_B1hw)
        meant_K = (share_TK * members_T[:, None]).clamp(max=1).amax(0)
        margin_B1hw = _margin(probabilities_BKhw, here_B1hw, photo_B1hw, meant_K, tuning)
        top_B1hw = scores_BThw.amax(1, keepdim=True).clamp(min=2 * math.log(_FLOOR))
        scores_BThw = torch.where(unknown_T[:, None, None], top_B1hw - margin_B1hw, scores_BThw)
    if affinity is not None:
        scores_BThw = (affinity @ scores_BThw.flatten(2).mT).mT.view_as(scores_BThw)
    return scores_BThw.permute(0, 2, 3, 1)


def _shares(rows_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with sum 1, and over how many classes each spreads (1 / sum of squares; n for an even spread over n).

    A row that is nowhere zero comes from text attention; its tail says "I do not know", not "all of these".
    """
    share_TK = rows_TK / rows_TK.sum(-1, keepdim=True).clamp(min=_FLOOR)
    members_T = 1 / share_TK.square().sum(-1).clamp(min=_FLOOR)
    attended_T = (rows_TK > 0).all(-1)
    return share_TK, torch.where(attended_T, members_T.clamp(max=MAX_SPREAD), members_T)


def _smooth(x_BThw: torch.Tensor, radius: int) -> torch.Tensor:
    """Mean of a square with repeated borders: single cells of a classifier never trained on places are noisy."""
    return F.avg_pool2d(F.pad(x_BThw, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)


def _margin(
    probabilities_BKhw: torch.Tensor,
    here_B1hw: torch.Tensor,
    photo_B1hw: torch.Tensor,
    meant_K: torch.Tensor,
    tuning: Tuning,
) -> torch.Tensor:
    """By how much the best word of a place beats "unknown".

    Evidence = log(mass here) + log(peak here) + 0.4 log(mass in the photo) - 0.6 max(0, log(rival here / mass here)).
    A mass is a sum over the word's classes, so it depends neither on how many classes a word spreads over nor on the
    other words. The peak is the classifier's own confidence, low on blurred backgrounds where its wide receptive field
    still sees the object.

    Args:
        probabilities_BKhw: class probabilities.
        here_B1hw, photo_B1hw: mass of each place's best word, at that place and in the photo.
        meant_K: how much each class is meant by some word, 0..1; the strongest class that none means is the rival.
        tuning: smoothing and threshold.

    Returns:
        (B, 1, h, w), within +-MARGIN.
    """
    peak_B1hw = _smooth(probabilities_BKhw.amax(1, keepdim=True), tuning.radius)
    rival_B1hw = _smooth((probabilities_BKhw * (1 - meant_K)[:, None, None]).amax(1, keepdim=True), tuning.radius)
    here, photo, peak, rival = ((x + _FLOOR).log() for x in (here_B1hw, photo_B1hw, peak_B1hw, rival_B1hw))
    evidence = here + peak + PRESENCE * photo - RIVALRY * (rival - here).clamp(min=0)
    return (evidence - tuning.threshold).clamp(-MARGIN, MARGIN)
