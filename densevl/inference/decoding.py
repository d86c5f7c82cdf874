"""From scores to a label map, with synonyms, background and thresholds, without a volume of classes by pixels.

The rule is that of the SCLIP family of papers: p = softmax over all query strings of scale * score. A class has the
probability of its best string. A pixel takes the best class, or none if a background string wins or the probability is
below the threshold. The best string decides the class, so synonyms cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from densevl.errors import LabelError
from densevl.kernels import AxisPlan, DecodePlan, dense_decode, dense_scores
from densevl.vocabulary.background import NOTHING

Refine = Callable[[torch.Tensor], torch.Tensor]
SURE = 1e-6  # confidence is clipped this far from 0 and 1 before calibration
AS_IT_IS = (1.0, 0.0)
REFINED_AT_ONCE = 16  # queries whose full maps are held while refined


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Attributes: labels (B, H, W) int16, -1 for nothing; confidence (B, H, W) float32 in 0..1."""

    labels: torch.Tensor
    confidence: torch.Tensor


def decode(
    scores: torch.Tensor,
    plan: DecodePlan,
    classes: torch.Tensor,
    *,
    scale: float,
    threshold: float = 0.0,
    rest: bool = False,
    min_share: float = 0.0,
    refine: Refine | None = None,
    calibration: tuple[float, float] = AS_IT_IS,
) -> LabelMap:
    """Decide every pixel.

    Args:
        scores: (B, Y, X, T) window scores. plan: their map to pixels.
        classes: (T,) class index of each query, -1 for background queries.
        scale: multiplies scores before the softmax (CLIP papers use 40 to 65).
        threshold: below this probability a pixel is labelled -1.
        rest: a pixel is labelled -1 if the best string leaves more than it has, 1 - p > p (the 1-max background).
        min_share: a class with no more than this share of the labelled pixels loses them to the next best class (the
            papers' area threshold). Probabilities are still over all queries.
        refine: refines scores at pixels, (B, C, H, W) to the same, each channel separately (`refine.Pamr`). Only a few
            queries at a time are expanded for it.
        calibration: slope and offset, see `InferenceProtocol`. Thresholds apply to calibrated values.

    Returns:
        The label map. `confidence` is the calibrated probability of the winning string, including background and the
        rest.
    """
    query, score, lse = _best_query(scores, plan, scale, refine)
    labels = classes[query.long()]
    if min_share > 0:
        for image in range(len(labels)):  # the share is per image
            dropped = _rare(labels[image], classes, min_share)
            if dropped.any():
                kept = (~dropped).nonzero().flatten()
                again, best, _ = _best_query(scores[image : image + 1, ..., kept], plan, scale, refine)
                labels[image] = classes[kept][again[0].long()]
                score[image] = best[0]
    confidence = calibrated(torch.exp(scale * score - lse).clamp_(max=1.0), calibration)  # rounding may exceed 1
    labels = torch.where(confidence < threshold, NOTHING, labels)
    if rest:
        labels = torch.where(confidence < 0.5, NOTHING, labels)
        confidence = torch.maximum(confidence, 1 - confidence)
    return LabelMap(labels.to(torch.int16), confidence)


def calibrated(p: torch.Tensor, calibration: tuple[float, float]) -> torch.Tensor:
    """Convert probabilities of winning strings to confidence: sigmoid(slope * logit(p) + offset)."""
    if calibration == AS_IT_IS:
        return p
    slope, offset = calibration
    return torch.sigmoid(slope * torch.logit(p, eps=SURE) + offset)


def _best_query(
    scores: torch.Tensor, plan: DecodePlan, scale: float, refine: Refine | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Like `dense_decode` with refined scores: label, score and logsumexp, (B, H, W) each."""
    if refine is None:
        return dense_decode(scores, plan, scale)
    if not scores.shape[-1]:
        raise LabelError("no queries to decode")
    label = torch.zeros(len(scores), *plan.size, dtype=torch.int64, device=scores.device)
    score = lse = torch.full_like(label, -torch.inf, dtype=torch.float32)
    for first in range(0, scores.shape[-1], REFINED_AT_ONCE):
        volume = refine(dense_scores(scores[..., first : first + REFINED_AT_ONCE], plan))
        best, which = volume.max(dim=1)
        label = torch.where(best > score, which + first, label)  # the first stays if equal
        score, lse = torch.maximum(score, best), torch.logaddexp(lse, torch.logsumexp(scale * volume, dim=1))
    return label, score, lse


def _rare(labels: torch.Tensor, classes: torch.Tensor, min_share: float) -> torch.Tensor:
    """Return which queries (T,) belong to a class with too small a share of the labelled pixels; never all of them."""
    counts = torch.bincount(labels[labels != NOTHING], minlength=int(classes.max().clamp(min=0)) + 1).float()
    share = counts / counts.sum().clamp(min=1)
    dropped = (classes != NOTHING) & (share[classes.clamp(min=0)] <= min_share)
    return dropped if not dropped.all() else torch.zeros_like(dropped)


def present(scores: torch.Tensor, classes: torch.Tensor, count: int, *, scale: float, threshold: float) -> torch.Tensor:
    """Return which classes are in each image, bool (B, count), before pixels are labelled.

    A class is present if one of its strings has a probability of at least `threshold` among all strings somewhere on
    the patch grid. This is MaskCLIP's prompt denoising, with 0.5 and CLIP's own scale.

    Args:
        scores: (B, Y, X, T) window scores. classes: (T,) class index of each string, -1 for strings without class.
        count: number of classes. scale: multiplies scores before the softmax.
    """
    best_BT = torch.full((len(scores), scores.shape[-1]), -torch.inf, device=scores.device)
    for row_BXT in scores.unbind(dim=1):  # one row at a time, to avoid a second tensor as large as the scores
        best_BT = torch.maximum(best_BT, torch.softmax(scale * row_BXT, dim=-1).amax(dim=1))
    owned = classes != NOTHING
    best_BC = torch.full((len(scores), count), -torch.inf, device=scores.device)
    index_BT = classes[owned].expand(len(scores), -1)
    return best_BC.scatter_reduce(1, index_BT, best_BT[:, owned], "amax") >= threshold


def chances(
    scores: torch.Tensor,
    plan: DecodePlan,
    classes: torch.Tensor,
    count: int,
    rows: torch.Tensor,
    cols: torch.Tensor,
    *,
    scale: float,
    rest: bool = False,
    refine: Refine | None = None,
    calibration: tuple[float, float] = AS_IT_IS,
) -> torch.Tensor:
    """Return probabilities of all classes at some pixels, by the softmax of `confidence`: (B, count + 1, h, w).

    Args:
        scores, plan, classes, scale, rest, refine, calibration: as for `decode`. count: number of classes.
        rows, cols: (h,) and (w,) int64 pixels of the output.

    Returns:
        Each class has the probability of its best string. The last one, "nothing", has that of the best string without
        a class, or with `rest` what the best string leaves. They do not sum to 1 if classes have several strings.
    """
    if refine is None:
        few = DecodePlan(AxisPlan(plan.rows.matrix[rows.cpu()]), AxisPlan(plan.cols.matrix[cols.cpu()]))
        strings = dense_scores(scores, few)
    else:
        parts = scores.split(REFINED_AT_ONCE, dim=-1)
        strings = torch.cat([refine(dense_scores(part, plan))[:, :, rows[:, None], cols] for part in parts], dim=1)
    p_BThw = (scale * strings).softmax(dim=1)
    if calibration != AS_IT_IS:  # the others share what is left
        top_B1hw = p_BThw.amax(dim=1, keepdim=True)
        sure_B1hw = calibrated(top_B1hw, calibration)
        left_B1hw = (1 - sure_B1hw) / (1 - top_B1hw).clamp(min=SURE)
        p_BThw = torch.where(p_BThw == top_B1hw, sure_B1hw, p_BThw * left_B1hw)
    owner_T = torch.where(classes == NOTHING, count, classes)
    best = p_BThw.new_zeros(p_BThw.shape[0], count + 1, *p_BThw.shape[2:])
    best = best.scatter_reduce(1, owner_T.view(1, -1, 1, 1).expand_as(p_BThw), p_BThw, "amax")
    if rest:
        best[:, -1] = torch.maximum(best[:, -1], 1 - best[:, :-1].amax(dim=1))
    return best


def class_scores(
    scores: torch.Tensor, plan: DecodePlan, classes: torch.Tensor, count: int, refine: Refine | None = None
) -> torch.Tensor:
    """Return the full volume (B, count, H, W), where each class has its best string's score, without background.

    It is computed class by class, so that only the strings of one class are held at full size.
    """
    volume = torch.empty(len(scores), count, *plan.size, device=scores.device)
    for index in range(count):
        strings = dense_scores(scores[..., classes == index], plan)
        volume[:, index] = (refine(strings) if refine else strings).amax(dim=1)
    return volume
