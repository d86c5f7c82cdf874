"""Small objects: which ways still name them, and which of two objects a photo's vector stands for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from densevl.errors import EvaluationError
from densevl.evaluation.analyses.base import FEW, Analysis, Chart, Finding, Row, Show, each, mean_of, percent, points
from densevl.evaluation.analyses.looks import CLS_MASK, CROP, IMAGE, POOL, Looks
from densevl.evaluation.analyses.objects import things
from densevl.evaluation.benchmarks.base import Dataset
from densevl.vocabulary import LabelSet

EDGES = (0.01, 0.04, 0.16)
BINS = ("<1 %", "1-4 %", "4-16 %", ">16 %")
APART, LARGER, FIRST = 0.15, 0.75, 0.02
"""Thresholds for advice: the lead of crops, how often the larger object wins, and how much nearer the first word is."""
PAIRS = 200
"""The largest number of pairs of words whose order is tested."""


def size_bias(looks: Looks, dataset: Dataset, labels: LabelSet, *, seed: int = 0, show: Show | None = None) -> Analysis:
    """Measure how often objects get their label, by the share of the photo that they cover, in each way of looking.

    "The larger wins" counts, for two classes in a photo, how often the larger one's word beats the smaller one's at the
    smaller object. The whole image has one answer for both.

    Raises:
        EvaluationError: no image has an object.
    """
    first = int(dataset.classes.background)
    words = looks.words(labels)
    right: dict[tuple[str, int], list[bool]] = {(way, at): [] for way in looks.ways for at in range(len(BINS))}
    larger: dict[str, list[bool]] = {way: [] for way in looks.ways}
    for sample in each(dataset, show, "size"):
        found = things(sample, dataset)
        if not found:
            continue
        scores = looks(sample.image, [thing.mask for thing in found], words)
        for index, thing in enumerate(found):
            at = int(np.searchsorted(EDGES, thing.share, side="right"))
            for way in looks.ways:
                right[way, at].append(int(scores[way][index].argmax()) == thing.label - first)
        largest: dict[int, int] = {}
        for index, thing in enumerate(found):
            largest.setdefault(thing.label, index)
        for big, small in combinations(sorted(largest.values()), 2):  # things come largest first
            if found[big].share == found[small].share:
                continue
            a, b = found[big].label - first, found[small].label - first
            for way in looks.ways:
                larger[way].append(bool(scores[way][small][a] > scores[way][small][b]))
    if not any(right.values()):
        raise EvaluationError(f"no image of '{dataset.name}' has an object of at least 16 pixels")
    rows: list[Row] = [
        {
            "share of the photo": name,
            "objects": len(right[IMAGE, at]),
            **{way: mean_of(right[way, at]) for way in looks.ways},
        }
        for at, name in enumerate(BINS)
    ]
    wins: list[Row] = [{"way": way, "pairs": len(own), "the larger wins": mean_of(own)} for way, own in larger.items()]
    tables: dict[str, Sequence[Row]] = {"": rows, "two classes in a photo": wins}
    order, finding = _text(looks, labels, seed)
    if order:
        tables["words in a sentence"] = order
    series = {
        way: [(float(at), float(row[way])) for at, row in enumerate(rows) if int(row["objects"]) >= FEW]
        for way in looks.ways
    }
    text = (
        "Share of objects whose best label is theirs (top-1), by the share of the photo that they cover. The whole "
        "image has one answer for all its objects. The larger wins: its word beats the smaller one's at the smaller "
        f"object. The chart leaves out sizes of fewer than {FEW} objects."
    )
    charts = [Chart(series, "share of the photo", "top-1", {float(at): name for at, name in enumerate(BINS)})]
    findings = [_sizes(rows, looks.ways), _larger(wins), *finding]
    return Analysis("Object size", text, tables, charts, findings)


def _text(looks: Looks, labels: LabelSet, seed: int) -> tuple[list[Row], list[Finding]]:
    """How much nearer "A and B" is to A than to B, over pairs in both orders."""
    pairs = list(combinations(labels.names, 2))
    order = np.random.default_rng(seed).permutation(len(pairs))[:PAIRS]
    left = [pairs[at] for at in order]
    both = [*left, *((b, a) for a, b in left)]
    if not both:
        return [], []
    sentences = [f"{a} and {b}" for a, b in both]
    near = looks.likeness(sentences, [a for a, _ in both])
    far = looks.likeness(sentences, [b for _, b in both])
    if near is None or far is None:
        return [], []
    gap = near - far
    balanced = (gap[: len(left)] + gap[len(left) :]) / 2  # effects of the word itself cancel
    row: Row = {"pairs": len(left), "cosine to the first": f"{near.mean():.3f}", "to the second": f"{far.mean():.3f}"}
    row |= {"difference": f"{balanced.mean():+.3f}", "the first is nearer": mean_of(balanced > 0)}
    text = (
        f"'A and B' is nearer to A than to B by {balanced.mean():+.3f} of cosine, both orders averaged (threshold "
        f"{FIRST:+.2f} either way)."
    )
    advice = "Do not search or classify by sentences of two things; ask for each, or name the more important first."
    return [row], [Finding(text, advice if abs(balanced.mean()) > FIRST else "")]


def _sizes(rows: Sequence[Row], ways: Sequence[str]) -> Finding:
    """The finding for the smallest size with enough objects."""
    row = next((row for row in rows if int(row["objects"]) >= FEW), None)
    if row is None:
        return Finding(f"No size has {FEW} objects or more: too few to tell.")
    tops = {way: float(row[way]) for way in ways}
    shares = ", ".join(f"{way} {percent(value)}" for way, value in tops.items())
    text = (
        f"Of objects of {row['share of the photo']} of the photo, the smallest met {FEW} times, named right: {shares}"
    )
    dense = max((way for way in (POOL, CLS_MASK) if way in tops), key=lambda way: tops[way])
    if tops[CROP] - tops[IMAGE] > APART and tops[CROP] - tops[dense] > APART:
        return Finding(
            f"{text}; crops lead by {points(tops[CROP] - tops[dense])} over {dense} (threshold {points(APART)}).",
            "Small objects need more pixels: densevl regions --operator crop, or label maps of larger photos "
            "(--short-side) with --plan sliding.",
        )
    if max(tops[CROP], tops[dense]) - tops[IMAGE] > APART:
        best = dense if tops[dense] >= tops[CROP] else CROP
        return Finding(
            f"{text}; {best} leads the whole image by {points(tops[best] - tops[IMAGE])} (threshold {points(APART)}).",
            f"Do not name small objects by the vector of the whole photo; take densevl segment, or densevl regions "
            f"--operator {best}.",
        )
    if max(tops.values()) < 0.5:
        return Finding(
            f"{text}; no way names half of them.", "Feed larger photos (--short-side), or take a larger model."
        )
    return Finding(f"{text}; no way is {points(APART)} ahead.")


def _larger(rows: Sequence[Row]) -> Finding:
    row = rows[0]
    share, dense = float(row["the larger wins"]), {str(own["way"]): float(own["the larger wins"]) for own in rows[1:]}
    others = ", ".join(f"{way} {percent(value)}" for way, value in dense.items())
    text = (
        f"Of two classes in a photo, the vector of the whole photo prefers the larger in {percent(share)} of "
        f"{row['pairs']} pairs (threshold {percent(LARGER)}); at the smaller object the larger one's word wins by "
        f"{others}."
    )
    if int(row["pairs"]) < FEW or not share > LARGER:
        return Finding(text)
    return Finding(text, "Classify photos of several things by their parts: densevl segment or regions, not classify.")
