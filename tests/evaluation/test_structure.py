"""Structure measures against direct computations by the papers' formulas, and pysodmetrics where it is installed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from densevl.evaluation import EvaluationError, Experiment, run
from densevl.evaluation.metrics.structure import (
    UNIT,
    curves,
    mean_error,
    s_measure,
    structure_counts,
    structure_summary,
    structure_zeros,
    weighted_f,
)
from densevl.evaluation.predictors import Clock, Prediction
from densevl.evaluation.report import results as report

CASES = 100
_SAMPLES = (("a", "crab"), ("b", "owl"))


def _case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A score map and a mask, sometimes empty, full, or of one line."""
    rng = np.random.default_rng(seed)
    shape = (1, 9) if seed % 17 == 5 else tuple(rng.integers(5, 14, 2))
    target = np.zeros(shape, bool)
    if seed % 11 == 3:
        target[:] = seed % 2 == 0
    else:
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        target[y : y + 5, x : x + 4] = True
    score = np.clip(target + rng.normal(0, 0.4, shape), 0, 1)
    if seed % 3 == 0:
        score = (score > 0.5).astype(float)
    return np.round(score * 255) / 255, target


def _direct_curves(score: np.ndarray, target: np.ndarray) -> tuple[list[float], list[float], list[float]]:
    """Threshold by threshold, pixel by pixel."""
    f, e, overlap = [], [], []
    levels = (score * 255).astype(int)
    for threshold in range(255, -1, -1):
        mask = levels >= threshold
        both, found, objects = int((mask & target).sum()), int(mask.sum()), int(target.sum())
        precision, recall = both / found if found else 0.0, both / objects if objects else 0.0
        f.append(1.3 * precision * recall / (0.3 * precision + recall) if precision * recall else 0.0)
        overlap.append(both / (mask | target).sum() if (mask | target).any() else 0.0)
        if target.all() or not target.any():
            enhanced = mask.astype(float) if target.all() else 1.0 - mask
        else:
            one, other = mask - mask.mean(), target - target.mean()
            align = 2 * one * other / (one**2 + other**2 + np.spacing(1))
            enhanced = (align + 1) ** 2 / 4
        e.append(enhanced.sum() / (target.size - 1 + np.spacing(1)))
    return f, e, overlap


def test_curves_equal_counting_threshold_by_threshold() -> None:
    for seed in range(CASES):
        for ours, expected in zip(curves(*_case(seed)), _direct_curves(*_case(seed)), strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-10, err_msg=str(seed))


def _direct_s(score: np.ndarray, target: np.ndarray) -> float:
    def of_object(values: list[float]) -> float:
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0
        return 2 * mean / (mean**2 + 1 + spread)

    height, width = target.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    inside = [p for p in pixels if target[p]]
    outside = [p for p in pixels if not target[p]]
    share = len(inside) / len(pixels)
    if share in (0.0, 1.0):
        return float(score.mean()) if share else 1 - float(score.mean())
    objects = share * of_object([score[p] for p in inside])
    objects += (1 - share) * of_object([1 - score[p] for p in outside])
    middle = [np.round(sum(p[axis] for p in inside) / len(inside)) for axis in (0, 1)]
    total = 0.0
    for low in (True, False):
        for left in (True, False):
            part = [p for p in pixels if (p[0] <= middle[0]) == low and (p[1] <= middle[1]) == left]
            if not part:
                continue
            a, b = np.array([score[p] for p in part]), np.array([float(target[p]) for p in part])
            covariance = np.atleast_2d(np.cov(a, b)) if len(part) > 1 else np.zeros((2, 2))
            above = 4 * a.mean() * b.mean() * covariance[0, 1]
            below = (a.mean() ** 2 + b.mean() ** 2) * (covariance[0, 0] + covariance[1, 1])
            total += len(part) / len(pixels) * (above / below if above else float(below == 0))
    return max(0.0, (objects + total) / 2)


def test_s_measure_equals_the_formula_region_by_region() -> None:
    for seed in range(CASES):
        score, target = _case(seed)
        assert s_measure(score, target) == pytest.approx(_direct_s(score, target), abs=1e-9), seed
        assert mean_error(score, target) == pytest.approx(sum(abs(score - target).ravel()) / score.size)


def _direct_weighted(score: np.ndarray, target: np.ndarray, nearest: np.ndarray) -> float:
    """A pixel of the ground has the error of the object's nearest pixel; `nearest` says which of equally near ones."""
    if not target.any():
        return 0.0
    height, width = target.shape
    error = abs(score - target)
    spread = error.copy()
    distance = np.zeros(target.shape)
    objects = np.argwhere(target)
    for y, x in np.argwhere(~target):
        distance[y, x] = np.sqrt(((objects - (y, x)) ** 2).sum(axis=1)).min()
        chosen = tuple(nearest[:, y, x])
        assert target[chosen]
        assert np.hypot(chosen[0] - y, chosen[1] - x) == pytest.approx(distance[y, x])
        spread[y, x] = error[chosen]
    kernel = {(j, i): math.exp(-(i * i + j * j) / 50) for j in range(-3, 4) for i in range(-3, 4)}
    weighted = np.zeros(target.shape)
    for y in range(height):
        for x in range(width):
            near = 0.0
            for (j, i), weight in kernel.items():
                if 0 <= y + j < height and 0 <= x + i < width:
                    near += weight * spread[y + j, x + i] / sum(kernel.values())
            own = min(error[y, x], near) if target[y, x] else error[y, x]
            weighted[y, x] = own * (1 if target[y, x] else 2 - 0.5 ** (distance[y, x] / 5))
    recall = 1 - weighted[target].mean()
    right = target.sum() - weighted[target].sum()
    precision = right / (right + weighted[~target].sum() + np.spacing(1))
    return float(2 * recall * precision / (recall + precision + np.spacing(1)))


def test_weighted_f_equals_the_formula_pixel_by_pixel() -> None:
    from scipy import ndimage

    for seed in range(40):
        score, target = _case(seed)
        nearest = ndimage.distance_transform_edt(~target, return_indices=True)[1]
        assert weighted_f(score, target) == pytest.approx(_direct_weighted(score, target, nearest), abs=1e-9), seed


@pytest.mark.filterwarnings("ignore")
def test_all_equal_pysodmetrics_where_it_is_installed() -> None:
    theirs = pytest.importorskip("py_sod_metrics")
    compared = 0
    for seed in range(CASES):
        score, target = _case(seed)
        found = {}
        for name in ("Smeasure", "WeightedFmeasure", "MAE", "Fmeasure", "Emeasure"):
            judge = getattr(theirs, name)()
            judge.step(score.astype(np.float64), target, normalize=False)
            found |= judge.get_results()
        f, e, _ = curves(score, target)
        assert mean_error(score, target) == pytest.approx(found["mae"], abs=1e-9)
        assert weighted_f(score, target) == pytest.approx(found["wfm"], abs=1e-9), seed
        np.testing.assert_allclose(e, found["em"]["curve"], atol=1e-9, err_msg=str(seed))
        if target.any():
            np.testing.assert_allclose(f, found["fm"]["curve"], atol=1e-9, err_msg=str(seed))
        if np.isfinite(found["sm"]):  # not where a quarter around the object's centre is empty or one pixel
            assert s_measure(score, target) == pytest.approx(found["sm"], abs=1e-6), seed
            compared += 1
    assert compared > CASES / 2


def test_a_wrong_class_scores_nothing_and_a_right_one_everything() -> None:
    truth = np.zeros((8, 8), np.int16)
    truth[2:5, 2:6] = 3
    perfect = structure_summary(structure_counts(truth, truth))
    assert perfect["cS"] == pytest.approx(1)
    assert perfect["cFw"] == pytest.approx(1)
    assert perfect["cMAE"] == 0
    assert perfect["cIoU max"] == pytest.approx(1)
    for found in (np.where(truth > 0, 2, 0), np.zeros_like(truth), np.full_like(truth, -1)):
        wrong = structure_summary(structure_counts(truth, found))
        assert wrong.pop("cMAE") == 1
        assert set(wrong.values()) == {0.0}
    half = structure_counts(truth, truth) + structure_counts(truth, np.zeros_like(truth))
    assert structure_summary(half)["right class"] == 0.5
    assert structure_summary(half)["cS"] == pytest.approx(0.5)
    assert math.isnan(structure_summary(structure_zeros())["cS"])


def test_the_class_with_most_pixels_is_the_answer() -> None:
    truth = np.zeros((8, 8), np.int16)
    truth[2:6, 2:6] = 1
    found = truth.copy()
    found[0, :6] = 2  # six pixels of another class
    counts = structure_counts(truth, found)
    assert structure_summary(counts)["cMAE"] == 0  # which are no part of the object either
    assert counts[0, 2] == UNIT


def test_several_objects_of_different_classes_are_refused() -> None:
    truth = np.array([[1, 2], [0, 0]], np.int16)
    with pytest.raises(EvaluationError, match="this truth has 2 classes"):
        structure_counts(truth, truth)


def test_ovcamo_is_reported_by_its_papers_measures(tmp_path) -> None:
    classes = [{"name": "crab", "split": "test"}, {"name": "owl", "split": "test"}]
    samples = [{"unique_id": stem, "base_class": own, "image": "x.png", "mask": "x.png"} for stem, own in _SAMPLES]
    (tmp_path / "class_info.json").write_text(json.dumps(classes))
    (tmp_path / "sample_info.json").write_text(json.dumps(samples))
    for stem, _ in _SAMPLES:
        for kind in ("image", "mask"):
            (tmp_path / "test" / kind).mkdir(parents=True, exist_ok=True)
        mask = np.zeros((8, 9), np.uint8)
        mask[2:6, 3:7] = 255
        Image.fromarray(mask).save(tmp_path / f"test/mask/{stem}.png")
        Image.fromarray(mask).save(tmp_path / f"test/image/{stem}.png")

    class Painter:
        """Finds the objects, and takes each for a crab."""

        clock = Clock()

        def facts(self) -> dict[str, str]:
            return {"model": "painter", "recipe": "none"}

        def __call__(self, rgb: np.ndarray) -> Prediction:
            found = np.minimum(rgb[..., 0], 1).astype(np.int16)
            return Prediction(found, np.ones(found.shape, np.float32))

    experiment = Experiment("ovcamo", root=str(tmp_path), measures=("structure",))
    outcome = run(experiment, tmp_path / "work", predictor=Painter())
    assert outcome.summary["right class"] == 0.5
    assert outcome.summary["mIoU"] < 1  # beside the rest
    assert outcome.summary["cS"] == pytest.approx(0.5)
    assert outcome.summary["cMAE"] == 0.5
    page = report.write(outcome, tmp_path / "out")[0].read_text()
    assert "images whose class was found" in page
