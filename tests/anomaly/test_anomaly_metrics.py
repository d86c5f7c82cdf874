"""Streaming anomaly metrics against direct computations and scikit-learn."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from densevl.errors import DensevlError
from densevl.evaluation.metrics.anomaly import AnomalyMetrics, exact


def direct(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """AUROC by pairs, AP by steps over distinct thresholds, F1-max."""
    positive, negative = scores[truth], scores[~truth]
    auroc = np.mean((positive[:, None] > negative) + 0.5 * (positive[:, None] == negative))
    ap, recall, best = 0.0, 0.0, 0.0
    for value in np.unique(scores)[::-1]:
        called = scores >= value
        hits = (called & truth).sum()
        ap += (hits / truth.sum() - recall) * hits / called.sum()
        recall = hits / truth.sum()
        best = max(best, 2 * hits / (called.sum() + truth.sum()))
    return float(auroc), float(ap), float(best)


def flooded(mask: np.ndarray) -> np.ndarray:
    """Regions of a mask numbered from 1 by a flood fill that passes corners."""
    numbers = np.zeros(mask.shape, int)
    for start in zip(*np.nonzero(mask), strict=True):
        stack, number = [start], numbers.max() + 1
        while stack:
            y, x = stack.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not numbers[y, x]:
                numbers[y, x] = number
                stack += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return numbers


def direct_aupro(maps: list[np.ndarray], masks: list[np.ndarray], limit: float) -> float:
    """Mean overlap of every region against the false positive rate, from all distinct thresholds."""
    labelled = [flooded(mask) for mask in masks]
    regions = [(i, r) for i, numbers in enumerate(labelled) for r in range(1, numbers.max() + 1)]
    pool = np.concatenate([scores.ravel() for scores in maps])
    normal = np.concatenate([scores[~mask] for scores, mask in zip(maps, masks, strict=True)])
    rate, overlap = [0.0], [0.0]
    for value in np.unique(pool)[::-1]:
        rate.append((normal >= value).mean())
        overlap.append(np.mean([(maps[i][labelled[i] == r] >= value).mean() for i, r in regions]))
    rate, overlap = np.array(rate), np.array(overlap)
    grid = np.unique(np.concatenate([rate[rate <= limit], [limit]]))
    upper = np.array([overlap[rate == x].max() if (rate == x).any() else np.interp(x, rate, overlap) for x in grid])
    lower = np.array([overlap[rate == x].min() if (rate == x).any() else np.interp(x, rate, overlap) for x in grid])
    return float(((upper[:-1] + lower[1:]) / 2 * np.diff(grid)).sum() / limit)


def some_images(kind: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(7)
    maps, masks = [], []
    for number in range(6):
        mask = np.zeros((18, 15), bool)
        for _ in range(number % 3):
            y, x = rng.integers(0, 13, 2)
            mask[y : y + rng.integers(2, 5), x : x + rng.integers(2, 5)] = True
        scores = rng.normal(size=mask.shape) + 1.2 * mask
        scores = {
            "normal": scores,
            "narrow": 0.5 + 1e-6 * scores,
            "heavy tail": np.exp(scores * (1 + number)),
            "probabilities": 1 / (1 + np.exp(-3 * scores)),
            "few values": np.round(scores),
            "float32": scores.astype(np.float32),
        }[kind]
        maps.append(scores)
        masks.append(mask)
    return maps, masks


@pytest.mark.parametrize("kind", ["normal", "narrow", "heavy tail", "probabilities", "few values", "float32"])
def test_histograms_agree_with_a_direct_computation(kind) -> None:
    maps, masks = some_images(kind)
    metrics, workers = AnomalyMetrics(), [AnomalyMetrics(), AnomalyMetrics()]
    for number, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        metrics.update(scores, mask, scores.max())
        workers[number % 2].update(scores, mask, scores.max())
    found = metrics.compute()
    scores, truth = (np.concatenate([one.ravel() for one in many]) for many in (maps, masks))
    expected = direct(scores, truth)
    assert np.allclose([found["pixel_auroc"], found["pixel_ap"], found["pixel_f1"]], expected, atol=1e-3)
    assert abs(found["aupro"] - direct_aupro(maps, masks, 0.3)) < 1e-4
    assert np.allclose(
        [found[f"image_{name}"] for name in ("auroc", "ap", "f1")],
        direct(np.array([one.max() for one in maps]), np.array([mask.any() for mask in masks])),
    )
    workers[0].merge(workers[1])
    merged = workers[0].compute()
    assert all(abs(merged[key] - found[key]) < 2e-3 for key in found if "threshold" not in key)


def test_exact_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random(500) < 0.2
    scores = np.round(rng.normal(size=500) + truth, 1)
    found = exact(scores, truth)
    assert abs(found["auroc"] - roc_auc_score(truth, scores)) < 1e-9
    assert abs(found["ap"] - average_precision_score(truth, scores)) < 1e-9


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3])
def test_many_maps_agree_with_scikit_learn_on_all_pixels_at_once(share) -> None:
    rng = np.random.default_rng(2)
    masks = rng.random((40, 96, 96)) < share
    maps = (rng.normal(size=masks.shape) + 1.5 * masks).astype(np.float32) * np.linspace(0.5, 2, 40)[:, None, None]
    metrics = AnomalyMetrics()
    for scores, mask in zip(maps, masks, strict=True):
        metrics.update(scores, mask)
    found = metrics.compute()
    assert abs(found["pixel_auroc"] - roc_auc_score(masks.ravel(), maps.ravel())) < 1e-3
    assert abs(found["pixel_ap"] - average_precision_score(masks.ravel(), maps.ravel())) < 1e-3
    assert 0 <= found["pixel_auroc_error"] < 1e-3


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ("perfect", "half", (1.0, 1.0, 1.0)),
        ("inverted", "half", (0.0, None, 0.0)),
        ("constant", "half", (0.5, 0.5, 0.15)),
        ("perfect", "none", (None, None, None)),
        ("perfect", "all", (None, None, None)),
        ("perfect", "pixel", (None, None, None)),
    ],
)
def test_known_cases(scores, truth, expected) -> None:
    half = np.zeros((8, 8), bool)
    half[:4] = True
    mask = {"half": half, "none": ~half & half, "all": half | ~half, "pixel": np.arange(64).reshape(8, 8) == 9}[truth]
    values = {"perfect": half * 1.0, "inverted": half * -1.0, "constant": np.full((8, 8), 3.0)}[scores]
    metrics = AnomalyMetrics()
    metrics.update(values, mask)
    found = metrics.compute()
    for key, value in zip(("pixel_auroc", "pixel_ap", "aupro"), expected, strict=True):
        if value is not None:
            assert abs(found[key] - value) < 1e-9, key
        elif truth in ("none", "all"):
            assert np.isnan(found[key]), key
    assert np.isnan(found["image_auroc"])


def test_memory_stays_flat_over_two_thousand_maps(monkeypatch) -> None:
    monkeypatch.setattr("densevl.evaluation.metrics.anomaly.EXACT", 2**18)
    rng = np.random.default_rng(0)
    mask = rng.random((24, 24)) < 0.02
    metrics, kept = AnomalyMetrics(), []
    tracemalloc.start()
    for number in range(2000):
        metrics.update(rng.normal(size=(24, 24)) * (1 + number / 50), mask)
        if number in (999, 1999):
            metrics.compute()
            kept.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert kept[1] < kept[0] + 1e6  # a thousand such maps are 4.6 MB, their cells 18 MB


@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), "both must be one"),
        (np.full((2, 2), np.nan), None, "finite"),
        (np.zeros(4), None, "both must be one"),
    ],
)
def test_unusable_maps_are_one_clear_line(scores, truth, message) -> None:
    with pytest.raises(DensevlError, match=message):
        AnomalyMetrics().update(scores, truth)
    with pytest.raises(DensevlError, match="above 0 and at most 1"):
        AnomalyMetrics(fpr_limit=0)
