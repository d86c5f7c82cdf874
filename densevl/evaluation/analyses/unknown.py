"""Things without a label: each class is left out in turn, and scores should flag its pixels as unknown.

Shape letters: C classes, P pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from densevl.errors import EvaluationError
from densevl.evaluation.analyses.base import Analysis, Finding, Row, Show, each, percent
from densevl.evaluation.benchmarks.base import Dataset
from densevl.evaluation.corruptions import CORRUPTIONS, corrupt
from densevl.evaluation.metrics.confusion import mean
from densevl.evaluation.metrics.ranking import BINS, Counts, auroc, bins_of, fpr_at
from densevl.evaluation.predictors import Predictor

Floats = npt.NDArray[np.float64]
SCORES = ("1 - max p", "margin", "-lse")
PIXELS, SCORED = 2**14, 2**22
"""The most pixels taken from an image, on an even grid; fewer where this times the classes is more."""
ODDS = 34.0
"""Log odds are clipped here."""
WELL, POORLY = 0.8, 0.7
"""AUROC at which a score is called useful, and below which it is called useless."""
CONDITIONS = {"as it is": ("", 0), **{f"{name} 3": (name, 3) for name in CORRUPTIONS}}


def unknown_classes(
    predictor: Predictor,
    dataset: Dataset,
    conditions: Mapping[str, tuple[str, int]] = CONDITIONS,
    *,
    seed: int = 0,
    show: Show | None = None,
) -> Analysis:
    """Compute AUROC and FPR95 of three scores for pixels of a left-out class against those of the other classes.

    With logits l of the remaining classes, the scores are 1 - max p, p = softmax(l); 1 - (p1 - p2), the two largest;
    and -logsumexp(l). FPR95 is the share of known pixels called unknown when 95 % of the unknown pixels are. Background
    and unscored pixels are left out.

    Args:
        predictor: has `logits(rgb)`, (C, H, W) without background, and `calibration`. conditions: corruption and
            severity by name; the photo itself is ("", 0).

    Raises:
        EvaluationError: there are fewer than three classes.
    """
    first, count = int(dataset.classes.background), len(dataset.classes.names)
    if count < 3:
        raise EvaluationError(f"'{dataset.name}' has {count} classes: with one left out, two must still compete")
    hist = np.zeros((len(conditions), len(SCORES), count, 2, BINS), np.int32)  # ADE20K's 847 classes: 0.6 GB
    ends: tuple[float, float] | None = None
    for number, sample in enumerate(each(dataset, show, "unknown")):
        rows, columns = _grid(sample.truth.shape, _most(count))
        truth = sample.truth[rows[:, None], columns].ravel().astype(np.int64) - first
        here = truth >= 0
        if not here.any():
            continue
        for at, (name, severity) in enumerate(conditions.values()):
            rgb = corrupt(sample.image, name, severity, seed + number) if name else sample.image
            logits = predictor.logits(rgb)[:, rows[:, None], columns].reshape(count, -1)[:, here]
            scores = left_out(logits.astype(np.float64))
            if ends is None:
                low, high = float(scores[2].min()), float(scores[2].max())
                ends = low - (high - low), high + (high - low)
            _count(hist[at], scores, truth[here], ends)
    return _as_analysis(hist, dataset, tuple(conditions), predictor.calibration)


def left_out(logits_CP: Floats) -> Floats:
    """Scores (3, C, P), larger where less is known, with each class left out: log odds of 1 - max p and of 1 - margin,
    and -logsumexp."""
    count, pixels = logits_CP.shape
    nothing = np.full((1, pixels), -np.inf)
    before = np.concatenate([nothing, np.logaddexp.accumulate(logits_CP, axis=0)[:-1]])
    after = np.concatenate([np.logaddexp.accumulate(logits_CP[::-1], axis=0)[::-1][1:], nothing])
    total = np.logaddexp(before, after)
    order = np.argsort(-logits_CP, axis=0, kind="stable")[:3]
    top = np.take_along_axis(logits_CP, order, axis=0)
    classes = np.arange(count)[:, None]
    is_first, is_second = classes == order[0], classes == order[1]
    best = np.where(is_first, top[1], top[0])
    second = np.where(is_first | is_second, top[2], top[1])
    log_p, log_q = best - total, second - total
    with np.errstate(divide="ignore"):
        rest = np.log(-np.expm1(log_p))  # log(1 - p)
        odds = rest - log_p
        # 1 - (p - q) over p - q
        margin = np.logaddexp(rest, log_q) - (log_p + np.log(-np.expm1(log_q - log_p)))
    return np.stack([np.clip(odds, -ODDS, ODDS), np.clip(margin, -ODDS, ODDS), -total])


def _count(
    hist: npt.NDArray[np.int32], scores: Floats, truth: npt.NDArray[np.int64], ends: tuple[float, float]
) -> None:
    count = scores.shape[1]
    is_unknown = truth == np.arange(count)[:, None]
    for score, values in enumerate(scores):
        low, high = ends if score == 2 else (-ODDS, ODDS)
        place = (2 * np.arange(count)[:, None] + is_unknown) * BINS + bins_of(values, low, high)
        hist[score] += np.bincount(place.ravel(), minlength=count * 2 * BINS).reshape(count, 2, BINS)


def _most(count: int) -> int:
    return min(PIXELS, max(1, SCORED // count))


def _grid(size: Sequence[int], most: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    step = max(1.0, (size[0] * size[1] / most) ** 0.5)
    rows, columns = ((np.arange(max(1, int(side / step))) + 0.5) * side / max(1, int(side / step)) for side in size)
    return rows.astype(np.int64), columns.astype(np.int64)


def _as_analysis(
    hist: npt.NDArray[np.int32], dataset: Dataset, conditions: Sequence[str], calibration: tuple[float, float]
) -> Analysis:
    known, unknown = hist[..., 0, :], hist[..., 1, :]
    pairs = list(zip(known, unknown, strict=True))  # a condition at a time, to bound memory
    area, alarms = np.stack([auroc(*pair) for pair in pairs]), np.stack([fpr_at(*pair)[0] for pair in pairs])
    rows: list[Row] = [
        {"condition": condition, "score": score, "AUROC": mean(area[at, s]), "FPR95": mean(alarms[at, s])}
        for at, condition in enumerate(conditions)
        for s, score in enumerate(SCORES)
    ]
    classes: list[Row] = [
        {"left out": name, **{f"AUROC of {score}": float(area[0, s, c]) for s, score in enumerate(SCORES)}}
        for c, name in enumerate(dataset.classes.names)
        if unknown[0, 0, c].any()
    ]
    text = (
        "Each class is left out of the labels in turn, and a score must tell its pixels from those of other classes. "
        f"Figures are means over classes. At most {_most(len(dataset.classes.names)):,} pixels of an image are taken, "
        "without background. FPR95: known pixels called unknown when 95 % of the unknown ones are."
    )
    findings = [_threshold(area, known[0, 0].sum(axis=0), unknown[0, 0].sum(axis=0), calibration)]
    if len(conditions) > 1:
        findings.append(_worse(area, conditions))
    return Analysis("Unknown classes", text, {"": rows, "by class": classes}, findings=findings)


def _threshold(area: Floats, known: Counts, unknown: Counts, calibration: tuple[float, float]) -> Finding:
    """Args: area: AUROC (conditions, scores, C). known, unknown: counts by 1 - max p, classes together."""
    means = [mean(row) for row in area[0]]
    best = int(np.nanargmax(means)) if not np.isnan(means).all() else 0
    sentence = f"AUROC of {SCORES[0]}, the best score, is {means[0]:.3f}"
    if best:
        sentence = f"AUROC of {SCORES[0]} is {means[0]:.3f}, of the best score, {SCORES[best]}, {means[best]:.3f}"
    text = f"{sentence} (useful from {WELL}, useless below {POORLY})."
    if means[0] >= WELL:
        alarms, place = fpr_at(known, unknown)
        odds = -ODDS + float(place) * 2 * ODDS / BINS
        threshold = 1 / (1 + np.exp(calibration[0] * odds - calibration[1]))
        return Finding(
            text,
            f"A threshold works: --background {threshold:.2g} or so calls 95 % of the unknown pixels nothing, with "
            f"{percent(float(alarms))} of the known.",
        )
    if means[best] >= WELL:
        return Finding(text, f"Reject by {SCORES[best]} of `result.scores`; a threshold of --background is blunt.")
    poor = "No threshold finds" if means[best] < POORLY else "A threshold finds only part of"
    return Finding(text, f"{poor} what has no label: name what else is there, by --background WORDS or more labels.")


def _worse(area: Floats, conditions: Sequence[str]) -> Finding:
    worse = [mean(row[0]) for row in area]
    worst = int(np.nanargmin(worse)) if not np.isnan(worse).all() else 0
    text = f"On worse photos AUROC of {SCORES[0]} falls to {worse[worst]:.3f} ({conditions[worst]}; threshold -0.1)."
    return Finding(text, "Set thresholds on photos as bad as those to come." if worse[0] - worse[worst] > 0.1 else "")
