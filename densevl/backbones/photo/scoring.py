"""From class logits and word rows to word scores, with a channel for "none of these words".

Shape letters: B batch, K the 1000 classes, h/w score grid, N = h*w, T words.

A word's evidence is the log-mean-exp of the raw logits of its classes, smoothed over places that belong together. Raw
logits separate right places from wrong ones better (area under the curve 0.90 on VOC photos) than class probabilities
(0.84): a softmax over classes makes the likeliest class of a blurred wall as certain as that of an object. Saliency
says whether a place shows an object at all (0.88 by itself, 0.91 together).

The constants were fixed on 100 PASCAL-VOC photos; docs/models.md has results on others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch.nn import functional as F

# Between the mean over a word's classes (0), which penalises words with many, and their sum (1), which favours them.
BREADTH = 0.25
# How far the evidence that one place in ONE_IN exceeds moves a word's threshold: a word with strong evidence somewhere
# needs strong evidence everywhere (the normalisation of class activation maps).
ONE_IN, RELATIVE, USUAL_TOP = 50, 0.3, 6.0
# A word whose best place has less evidence than this is not in the photo; and by how much its scores are lowered.
ABSENT, PUSH = 4.0, 4.0
SALIENCY = 0.8
# Bounds the unknown channel around the best word, so that one cell cannot dominate its neighbours when upsampled.
MARGIN = 8.0
# Scores are kept at most this far below the best one of a place: logarithms near zero would dominate averages.
DEPTH = 12.0
SAME = 0.999  # cosine of rows that cannot be told apart
_FLOOR = 1e-6


class Tier(NamedTuple):
    """Adjustments for a word that is weak by nature. Attributes: shift, of its threshold; bonus, of its score."""

    shift: float = 0.0
    bonus: float = 0.0


class Tuning(NamedTuple):
    """Settings that differ with and without the affinity.

    Attributes:
        radius: cells on each side of the square mean that smooths evidence instead of the affinity.
        threshold: evidence under which a place is unknown, for a word of usual strength. Lower keeps more of an object
            and lets in more specks of absent words.
        leniency: how much of a word's tier applies. Without saliency, low thresholds spread weak words over background.
    """

    radius: int
    threshold: float
    leniency: float


PLAIN = Tuning(2, 3.0, 0.5)
SPREAD = Tuning(0, 3.5, 1.0)


def unknown_row(classes: int) -> torch.Tensor:
    """The row (K,) for the unknown channel: it points away from every word, so its sign identifies it."""
    return torch.full((classes,), -(classes**-0.5))


def score(
    logits_BKhw: torch.Tensor,
    rows_TK: torch.Tensor,
    affinity_BNN: torch.Tensor | None = None,
    saliency_B1hw: torch.Tensor | None = None,
    tiers: Mapping[frozenset[int], Tier] | None = None,
) -> torch.Tensor:
    """Score T rows at every place.

    Args:
        logits_BKhw: class logits at each place.
        rows_TK: word rows, non-negative, at any positive scale, and unknown rows among them.
        affinity_BNN: rows sum to 1; evidence spreads by it. saliency_B1hw: log odds that a place shows an object.
        tiers: of words, by their classes.

    Returns:
        (B, h, w, T) float32 scores; a word row of zeros never wins.
    """
    tuning = PLAIN if affinity_BNN is None else SPREAD

    def smooth(x_BThw: torch.Tensor) -> torch.Tensor:
        if affinity_BNN is None:
            return _mean(x_BThw, tuning.radius)
        return (affinity_BNN @ x_BThw.flatten(2).mT).mT.reshape_as(x_BThw)

    unknown_T = rows_TK.sum(-1) < 0
    rows_TK = rows_TK.float().clamp(min=0)
    shift_T, bonus_T = (tuning.leniency * tier_T for tier_T in _tiers(rows_TK, tiers or {}))
    share_TK, members_T = _shares(narrowed(rows_TK))
    silent_T = (share_TK.sum(-1) == 0) | _repeated(share_TK)

    broad_T = BREADTH * members_T.clamp(min=1).log()
    evidence_BThw = smooth(_log_mean_exp(logits_BKhw, share_TK)) + broad_T[:, None, None]
    prior_BT = logits_BKhw.softmax(1).mean((2, 3)) @ share_TK.T * members_T**BREADTH
    scores_BThw = evidence_BThw + ((prior_BT + _FLOOR).log() + bonus_T)[:, :, None, None]
    scores_BThw = scores_BThw.masked_fill((unknown_T | silent_T)[:, None, None], -torch.inf)
    top_B1hw, best_B1hw = scores_BThw.max(1, keepdim=True)
    if torch.compiler.is_exporting() or unknown_T.any():
        strongest_BT = _near_top(evidence_BThw.flatten(2))
        threshold_BT = tuning.threshold + shift_T + RELATIVE * (strongest_BT - USUAL_TOP - shift_T)
        absent_BT = PUSH * (ABSENT + shift_T - strongest_BT).clamp(min=0)
        margin_BThw = evidence_BThw - (threshold_BT + absent_BT)[:, :, None, None]
        margin_B1hw = margin_BThw.gather(1, best_B1hw)
        if saliency_B1hw is not None:
            margin_B1hw = margin_B1hw + SALIENCY * smooth(saliency_B1hw)
        none_B1hw = top_B1hw.isinf()  # no word means anything
        margin_B1hw = margin_B1hw.clamp(-MARGIN, MARGIN).masked_fill(none_B1hw, -MARGIN)
        top_B1hw = top_B1hw.masked_fill(none_B1hw, 0)
        scores_BThw = torch.where(unknown_T[:, None, None], top_B1hw - margin_B1hw, scores_BThw)
    highest_B1hw = scores_BThw.amax(1, keepdim=True)
    highest_B1hw = highest_B1hw.masked_fill(highest_B1hw.isinf(), 0)
    return torch.maximum(scores_BThw, highest_B1hw - DEPTH).permute(0, 2, 3, 1)


def _tiers(rows_TK: torch.Tensor, tiers: Mapping[frozenset[int], Tier]) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift and bonus (T,) of the words whose classes are exactly those of a tier; 0 for all others."""
    kinds_NK = rows_TK.new_zeros(len(tiers), rows_TK.shape[1])
    for kind_K, classes in zip(kinds_NK, tiers, strict=True):
        kind_K[list(classes)] = 1
    has_TK = (rows_TK > 0).float()
    shared_TN = has_TK @ kinds_NK.T
    same_TN = (shared_TN == kinds_NK.sum(1)) & (shared_TN == has_TK.sum(1, keepdim=True))
    shift_T, bonus_T = (same_TN.float() @ rows_TK.new_tensor(list(tiers.values())).reshape(-1, 2)).unbind(1)
    return shift_T, bonus_T


def _repeated(share_TK: torch.Tensor) -> torch.Tensor:
    """Which words (T,) mean the same as an earlier one: with equal scores the winner would be chance."""
    unit_TK = F.normalize(share_TK, dim=1)
    return ((unit_TK @ unit_TK.T).tril(-1) > SAME).any(1)


def _near_top(evidence_BTN: torch.Tensor) -> torch.Tensor:
    """The evidence (B, T) that one place in fifty exceeds."""
    places = evidence_BTN.shape[-1]
    return evidence_BTN.sort(-1).values[..., places - 1 - places // ONE_IN]


def narrowed(rows_TK: torch.Tensor) -> torch.Tensor:
    """Rows without the classes that a narrower word also has: asked beside "dog", "animal" means the other animals.

    Words with the same classes, or half of them, are left as they are, as is a word that would keep none.
    """
    has_TK = rows_TK > 0
    size_T = has_TK.sum(1)
    shared_TT = has_TK.float() @ has_TK.float().T
    narrower_TT = (2 * size_T[None] < size_T[:, None]) & (shared_TT > 0)  # [t, u]: u is narrower than t
    taken_TK = (narrower_TT.float() @ has_TK.float()) > 0
    kept_TK = has_TK & ~taken_TK
    return torch.where((kept_TK | ~kept_TK.any(1, keepdim=True)), rows_TK, 0)


def _shares(rows_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with sum 1, and their effective number of classes (1 / sum of squares; n for an even spread over n)."""
    share_TK = rows_TK / rows_TK.sum(-1, keepdim=True).clamp(min=_FLOOR)
    return share_TK, 1 / share_TK.square().sum(-1).clamp(min=_FLOOR)


def _log_mean_exp(logits_BKhw: torch.Tensor, share_TK: torch.Tensor) -> torch.Tensor:
    """log sum_k share_k exp(logit_k), (B, T, h, w)."""
    highest_B1hw = logits_BKhw.amax(1, keepdim=True)
    mean_BThw = torch.einsum("bkhw,tk->bthw", (logits_BKhw - highest_B1hw).exp(), share_TK)
    return mean_BThw.clamp(min=math.exp(-60)).log() + highest_B1hw


def _mean(x_BThw: torch.Tensor, radius: int) -> torch.Tensor:
    """Mean over a square with repeated borders: the classifier was not trained on places, so single cells are noisy."""
    return F.avg_pool2d(F.pad(x_BThw, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)
