"""More words: the effect of adding labels that a benchmark does not have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from densevl.errors import EvaluationError
from densevl.evaluation.analyses.base import (
    Analysis,
    Chart,
    Finding,
    Labels,
    Row,
    Show,
    each,
    is_labelled,
    percent,
    points,
    reference,
)
from densevl.evaluation.benchmarks.base import Dataset
from densevl.evaluation.metrics.confusion import confusion, measures
from densevl.evaluation.predictors import Predictor

STEPS = (0, 5, 10, 20, 40)
LOST = 0.1
"""The loss by distractors before advice is given."""
TAKEN_BY = "taken by distractors"


def vocabulary_expansion(
    predictor: Predictor,
    dataset: Dataset,
    distractors: Sequence[str],
    steps: Iterable[int] = STEPS,
    *,
    seed: int = 0,
    show: Show | None = None,
) -> Analysis:
    """Measure mIoU as labels are added that the benchmark does not have; without truth, how much of the answer stays.

    A pixel that a distractor wins counts as background if the benchmark has one, otherwise as nothing found.

    Args:
        distractors: labels to add, in an order fixed by `seed`; those that already are labels or background words are
            left out.

    Raises:
        EvaluationError: no distractor is left.
    """
    own = {word.casefold() for word in (*predictor.labels.queries, *dataset.names, *predictor.policy.words)}
    extra = [word for word in dict.fromkeys(distractors) if word.casefold() not in own]
    if not extra:
        raise EvaluationError("every distractor is already a label or a background word; give other words")
    order = [extra[index] for index in np.random.default_rng(seed).permutation(len(extra))]
    known, first = len(dataset.names), int(dataset.classes.background)
    counts = sorted({min(step, len(order)) for step in (0, *steps)})
    wider = [_with(predictor, order[:count]) for count in counts]
    total = np.zeros((len(counts), known + 1, known + 1), np.int64)
    taken = np.zeros((len(counts), len(order)), np.int64)
    pixels = 0
    for sample in each(dataset, show, "vocabulary"):
        truth: Labels | None = None
        pixels += sample.image.shape[0] * sample.image.shape[1]
        for at, one in enumerate(wider):
            found = one(sample.image).labels
            lost = found[found >= known].astype(np.int64) - known
            taken[at] += np.bincount(lost, minlength=len(order))
            found = np.where(found < known, found, np.int16(first - 1))
            truth = reference(sample, found, known) if truth is None else truth  # the first has no distractors
            total[at] += confusion(truth, found, known)
    measure = "mIoU" if is_labelled(dataset) else "aAcc"
    up = "mIoU" if is_labelled(dataset) else "same answer"
    line = [(float(count), measures(own)[measure]) for count, own in zip(counts, total, strict=True)]
    shares = taken.sum(axis=1) / max(1, pixels)
    rows: list[Row] = [
        {"distractors": int(x), up: y, TAKEN_BY: float(share)} for (x, y), share in zip(line, shares, strict=True)
    ]
    measured = "mIoU over the benchmark's classes" if is_labelled(dataset) else "Share of pixels whose answer stays"
    text = f"{measured} with labels added that it does not have (seed {seed}), and the share of pixels that these take."
    greedy: list[Row] = [
        {"distractor": order[index], "pixels taken": float(taken[-1, index] / max(1, pixels))}
        for index in np.argsort(-taken[-1], kind="stable")[:8]
        if taken[-1, index]
    ]
    tables: dict[str, Sequence[Row]] = {"": rows, **({"greediest distractors": greedy} if greedy else {})}
    return Analysis(
        "Vocabulary expansion",
        text,
        tables,
        [Chart({dataset.name: line}, "distractor labels", up)],
        [_finding(rows, up, greedy)],
    )


def _with(predictor: Predictor, words: Sequence[str]) -> Predictor:
    labels = predictor.labels
    names = (*labels.names, *words)
    return predictor.with_labels(replace(labels, names=names, synonyms=(*labels.synonyms, *((w,) for w in words))))


def _finding(rows: Sequence[Row], up: str, greedy: Sequence[Row]) -> Finding:
    before, after = float(rows[0][up]), float(rows[-1][up])
    text = (
        f"{rows[-1]['distractors']} words that name nothing to look for take {percent(float(rows[-1][TAKEN_BY]))} of "
        f"the pixels; {up} goes from {percent(before)} to {percent(after)} (threshold {points(-LOST)})."
    )
    if not before - after > LOST:
        return Finding(text)
    words = ", ".join(str(row["distractor"]) for row in greedy[:3])
    return Finding(
        text,
        f"Ask only for labels that may be there. The greediest words are {words}: where they may be there, give the "
        "labels that they take pixels from more synonyms, or drop labels by --presence.",
    )
