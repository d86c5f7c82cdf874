"""Unknown classes: scores against loops in float64, curves against scikit-learn, and models that know or do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from label_maps import written
from sklearn.metrics import roc_auc_score, roc_curve

from densevl.evaluation import EvaluationError, open_dataset
from densevl.evaluation.analyses.unknown import ODDS, SCORES, left_out, unknown_classes
from densevl.evaluation.metrics.ranking import BINS, auroc, bins_of, fpr_at

NAMES = ("background", "red", "green", "blue", "grey")


def _by_hand(logits: list[float]) -> list[float]:
    """1 - max p, 1 - margin, -lse."""
    total = math.log(sum(math.exp(value) for value in logits))
    p = sorted((math.exp(value - total) for value in logits), reverse=True)
    return [1 - p[0], 1 - (p[0] - p[1]), -total]


@pytest.mark.parametrize("scale", [0.5, 8.0])
def test_scores_without_a_class_are_those_of_a_model_that_never_had_it(scale) -> None:
    logits = scale * np.random.default_rng(1).standard_normal((5, 40))
    found = left_out(logits)
    for c in range(5):
        for pixel in range(40):
            expected = _by_hand([logits[other, pixel] for other in range(5) if other != c])
            shares = [1 / (1 + math.exp(-odds)) for odds in found[:2, c, pixel]]
            np.testing.assert_allclose([*shares, found[2, c, pixel]], expected, rtol=1e-9, atol=1e-12)


def test_a_class_that_towers_over_the_others_leaves_them_told_apart() -> None:
    """Its exponential taken off a sum would leave rounding alone."""
    found = left_out(np.array([[500.0], [1.0], [0.0], [0.0]]))
    np.testing.assert_allclose(found[2, 0], -np.log(np.exp(1) + 2), rtol=1e-12)
    assert found[0, 1, 0] == -ODDS  # there it takes part, and is sure


@pytest.mark.parametrize("count", [3, 400, 20_000])
@pytest.mark.parametrize("kind", ["apart", "mixed", "ties"])
def test_curves_are_those_of_scikit_learn(count, kind) -> None:
    rng = np.random.default_rng(count)
    shift = {"apart": 4.0, "mixed": 0.5, "ties": 0.0}[kind]
    known, unknown = rng.standard_normal(count), rng.standard_normal(count) + shift
    if kind == "ties":
        known, unknown = known.round(), unknown.round()
    counts = [np.bincount(bins_of(values, -12, 12), minlength=BINS) for values in (known, unknown)]
    truth, scores = np.repeat([0, 1], count), np.concatenate([known, unknown])
    assert auroc(*counts) == pytest.approx(roc_auc_score(truth, scores), abs=1e-3)
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    rate, _ = fpr_at(*counts)
    assert rate == pytest.approx(false[np.argmax(true >= 0.95)], abs=5e-3)  # a bin is 24 / 4096 wide


def test_of_no_pixels_there_is_no_curve() -> None:
    some, none = np.bincount([5], minlength=BINS), np.zeros(BINS, np.int64)
    for counts in ((none, some), (some, none)):
        assert math.isnan(auroc(*counts))
        assert math.isnan(fpr_at(*counts)[0])


COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128]], float)


class Sure:
    """Gives a pixel of a class's colour a high score of that class, and all others the same; or knows nothing."""

    calibration = (1.0, 0.0)

    def __init__(self, knows: bool) -> None:
        self.knows = knows

    def logits(self, rgb: np.ndarray) -> np.ndarray:
        if not self.knows:
            return np.random.default_rng(rgb.sum()).standard_normal((4, *rgb.shape[:2]))
        distance = np.abs(rgb[None].astype(float) - COLOURS[:, None, None]).sum(axis=-1)
        return np.where(distance < 100, 9.0, 0.0)


@pytest.fixture
def dataset(tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, (5, 6)).repeat(5, 0).repeat(5, 1).astype(np.uint8)
    palette = np.concatenate([[[0, 0, 0]], COLOURS]).astype(np.uint8)
    photos = [(palette[labels], labels), (palette[labels[::-1]], labels[::-1])]
    return open_dataset("folder", written(tmp_path / "data", photos, NAMES))


def test_who_knows_classes_tells_all_that_is_left_out_and_who_guesses_none(dataset) -> None:
    found = unknown_classes(Sure(True), dataset, {"as it is": ("", 0), "dark": ("dark", 5)})
    table = {(row["condition"], row["score"]): row for row in found.rows}
    for score in SCORES:
        assert table["as it is", score]["AUROC"] == 1.0
        assert table["as it is", score]["FPR95"] == 0.0
        assert table["dark", score]["AUROC"] < 0.9  # of the four colours one or none is left
    assert [row["left out"] for row in found.tables["by class"]] == list(NAMES[1:])
    assert "threshold works" in found.findings[0].advice
    found = unknown_classes(Sure(False), dataset, {"as it is": ("", 0)})
    assert found.rows[0]["AUROC"] == pytest.approx(0.5, abs=0.1)
    assert "No threshold" in found.findings[0].advice


def test_of_two_classes_none_can_be_left_out(tmp_path) -> None:
    blank = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    dataset = open_dataset("folder", written(tmp_path / "data", [blank], NAMES[:3]))
    with pytest.raises(EvaluationError, match="two must still compete"):
        unknown_classes(Sure(True), dataset)
