"""The decision (synonyms, background, thresholds) against a plain numpy reading of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from densevl.inference import WindowGrid, class_scores, decode
from densevl.inference.decoding import chances, present
from densevl.kernels import dense_scores
from densevl.refine import Pamr


def naive(volume: np.ndarray, classes: np.ndarray, scale: float, threshold: float, min_share: float):
    """volume (T, H, W) to labels and confidence, written out."""
    logits = scale * volume.astype(np.float64)
    p = np.exp(logits - logits.max(0))
    p /= p.sum(0)
    kept = np.ones(len(classes), bool)
    best = p.argmax(0)
    labels = classes[best]
    if min_share:
        total = (labels >= 0).sum()
        kept = np.array([c < 0 or (labels == c).sum() / max(total, 1) > min_share for c in classes])
        if kept.any():
            p = np.where(kept[:, None, None], p, 0)
            labels = classes[p.argmax(0)]
    confidence = p.max(0)
    return np.where(confidence < threshold, -1, labels), confidence


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("threshold", [0.0, 0.35])
@pytest.mark.parametrize("min_share", [0.0, 0.2])
@pytest.mark.parametrize(
    "classes", [[0, 1, 2], [0, 0, 1, 2, 2], [-1, 0, 1, -1, 0], [-1, -1]], ids=["plain", "synonyms", "bg", "all-bg"]
)
def test_decision_equals_the_formula(scale, threshold, min_share, classes) -> None:
    windows = WindowGrid.place(40, 56, 32, 16, 8)
    scores = torch.randn(2, len(windows.rows.starts) * 4, len(windows.cols.starts) * 4, len(classes)) * 0.1
    plan = windows.plan(37, 45)
    got = decode(scores, plan, torch.tensor(classes), scale=scale, threshold=threshold, min_share=min_share)
    for image, volume in enumerate(dense_scores(scores, plan).numpy()):
        labels, confidence = naive(volume, np.array(classes), scale, threshold, min_share)
        two = np.sort(volume, 0)[-2:]
        tie = (two[1] - two[0] < 1e-6) | (abs(confidence - threshold) < 1e-5)
        np.testing.assert_allclose(got.confidence[image], confidence, atol=2e-5)
        assert ((got.labels[image].numpy() == labels) | tie).all()


@pytest.mark.parametrize("at_once", [1, 3, 16])
@pytest.mark.parametrize("min_share", [0.0, 0.2])
def test_refined_decision_in_parts_equals_the_refined_volume(at_once, min_share, monkeypatch) -> None:
    monkeypatch.setattr("densevl.inference.decoding.REFINED_AT_ONCE", at_once)
    windows = WindowGrid.place(40, 56, 32, 16, 8)
    scores = torch.randn(1, len(windows.rows.starts) * 4, len(windows.cols.starts) * 4, 7) * 0.1
    plan, classes = windows.plan(37, 45), torch.tensor([0, 0, 1, -1, 2, 3, 3])
    refine = Pamr(torch.rand(1, 3, 37, 45), iterations=2, dilations=(1, 3))
    got = decode(scores, plan, classes, scale=40.0, threshold=0.2, min_share=min_share, refine=refine)
    volume = refine(dense_scores(scores, plan))[0].numpy()
    labels, confidence = naive(volume, classes.numpy(), 40.0, 0.2, min_share)
    np.testing.assert_allclose(got.confidence[0], confidence, atol=2e-5)
    assert ((got.labels[0].numpy() == labels) | (abs(confidence - 0.2) < 1e-5)).all()


def test_class_scores_take_the_best_string_and_leave_background_out() -> None:
    windows = WindowGrid.place(16, 16, None, 1, 8)
    scores = torch.randn(1, 2, 2, 4)
    plan = windows.plan(16, 16)
    volume = dense_scores(scores, plan)
    got = class_scores(scores, plan, torch.tensor([1, 0, 1, -1]), 2)
    assert got.shape == (1, 2, 16, 16)
    torch.testing.assert_close(got[:, 0], volume[:, 1])
    torch.testing.assert_close(got[:, 1], torch.maximum(volume[:, 0], volume[:, 2]))


@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_the_rest_is_background_where_it_is_more_than_the_best(threshold) -> None:
    windows = WindowGrid.place(40, 56, 32, 16, 8)
    scores = torch.randn(1, len(windows.rows.starts) * 4, len(windows.cols.starts) * 4, 3) * 0.1
    plan, classes = windows.plan(37, 45), torch.tensor([0, 1, -1])
    plain = decode(scores, plan, classes, scale=20.0)
    got = decode(scores, plan, classes, scale=20.0, threshold=threshold, rest=True)
    p = plain.confidence
    assert 0 < (p < 0.5).float().mean() < 1
    assert ((got.labels == -1) == ((1 - p > p) | (p < threshold) | (plain.labels == -1))).all()
    assert (got.labels[got.labels >= 0] == plain.labels[got.labels >= 0]).all()
    torch.testing.assert_close(got.confidence, torch.maximum(p, 1 - p))


def test_a_class_is_present_where_one_of_its_strings_is_likely_somewhere() -> None:
    classes = torch.tensor([0, 2, 0, -1, 1])
    scores = torch.randn(2, 3, 4, 5)
    best = torch.softmax(3.0 * scores, dim=-1).flatten(1, 2).amax(1)
    for threshold in (0.3, 0.6, 0.9):
        got = present(scores, classes, 4, scale=3.0, threshold=threshold)
        for image in range(2):
            want = [max(best[image, 0], best[image, 2]), best[image, 4], best[image, 1], -1.0]  # class 3 has no string
            assert got[image].tolist() == [bool(p >= threshold) for p in want]


class Largest(TorchDispatchMode):
    """Remembers the most numbers any tensor held."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            self.numbers = max(self.numbers, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return out


@pytest.mark.parametrize(
    ("strings", "refine", "most"),
    [(10_000, None, 10_000 * 16 * 128), (200, lambda volume: volume, 16 * 120 * 160)],
    ids=["plain", "refined"],
)
def test_many_strings_are_decided_without_a_volume(strings, refine, most) -> None:
    scores = torch.randn(1, 3, 3, strings) * 0.1
    classes, plan = torch.arange(strings) // 2, WindowGrid.place(24, 24, None, 1, 8).plan(120, 160)
    with Largest() as largest:
        got = decode(scores, plan, classes, scale=40.0, refine=refine)
        present(scores, classes, strings // 2, scale=40.0, threshold=0.5)
    assert largest.numbers <= most
    assert got.labels[0, 0, 0] == classes[scores[0, 0, 0].argmax()]  # a corner pixel is its corner patch


def test_class_scores_hold_the_strings_of_one_class_at_a_time() -> None:
    windows = WindowGrid.place(24, 24, None, 1, 8)
    scores = torch.randn(1, 3, 3, 60)
    with Largest() as largest:
        class_scores(scores, windows.plan(100, 100), torch.arange(60) // 20, 3)
    assert largest.numbers <= 20 * 100 * 100


@pytest.mark.parametrize("strings", [2, 20])
def test_calibration_changes_how_sure_a_pixel_is_and_nothing_else(strings) -> None:
    plan = WindowGrid.place(16, 24, None, 1, 8).plan(16, 24)
    scores, classes = 2 * torch.randn(1, 2, 3, strings), torch.arange(strings)
    plain = decode(scores, plan, classes, scale=1.0)
    found = decode(scores, plan, classes, scale=1.0, calibration=(0.5, 0.2))
    assert torch.equal(plain.labels, found.labels)
    p = plain.confidence.double().numpy()
    wanted = 1 / (1 + np.exp(-0.2) * np.sqrt((1 - p) / p))
    np.testing.assert_allclose(found.confidence, wanted, atol=1e-5)
    y, x = torch.arange(16), torch.arange(24)
    chance = chances(scores, plan, classes, strings, y, x, scale=1.0, calibration=(0.5, 0.2))[:, :-1]
    torch.testing.assert_close(chance.amax(1), found.confidence, atol=1e-5, rtol=0)
    torch.testing.assert_close(chance.sum(1), torch.ones(1, 16, 24), atol=1e-4, rtol=0)
    few = decode(scores, plan, classes, scale=1.0, threshold=0.6, calibration=(0.5, 0.2))
    assert torch.equal(few.labels == -1, found.confidence < 0.6), "a threshold is for what is shown"
