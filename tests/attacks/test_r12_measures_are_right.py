"""R12: measures against other people's code and brute force, on 500 random cases and on the edges."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from densevl.evaluation.metrics.boundary import boundary, boundary_counts, boundary_iou, width
from densevl.evaluation.metrics.calibration import calibration, calibration_counts
from densevl.evaluation.metrics.confusion import confused, confusion, image_miou, iou, measures, per_class

CASES = 500


def _case(seed: int, most_classes: int = 9) -> tuple[np.ndarray, np.ndarray, int]:
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(1, most_classes + 1))
    shape = tuple(rng.integers(1, 24, 2))
    block = int(rng.integers(1, 6))
    coarse = [-(-side // block) for side in shape]

    def labels() -> np.ndarray:
        small = rng.integers(-1, classes, coarse)
        return small.repeat(block, 0).repeat(block, 1)[: shape[0], : shape[1]].astype(np.int16)

    return labels(), labels(), classes


def test_confusion_equals_skimage_on_500_random_cases() -> None:
    contingency_table = pytest.importorskip("skimage.metrics").contingency_table
    for seed in range(CASES):
        truth, found, classes = _case(seed)
        scored = truth >= 0
        counts = confusion(truth, found, classes)
        if scored.any():
            named = np.where(found < 0, classes, found)[scored]
            table = contingency_table(truth[scored].astype(np.int64), named.astype(np.int64)).toarray()
            wide = np.zeros((classes + 1, classes + 1))
            wide[: table.shape[0], : table.shape[1]] = table
            np.testing.assert_array_equal(counts, wide)
        assert counts.sum() == scored.sum()


def test_iou_equals_counting_by_hand_on_500_random_cases() -> None:
    for seed in range(CASES):
        truth, found, classes = _case(seed)
        scored = truth >= 0
        expected = []
        for index in range(classes):
            t, f = (truth == index) & scored, (found == index) & scored
            expected.append((t & f).sum() / (t | f).sum() if (t | f).any() else np.nan)
        ours = iou(confusion(truth, found, classes))
        np.testing.assert_allclose(ours, expected, rtol=1e-12)
        if not np.isnan(expected).all():
            assert measures(confusion(truth, found, classes))["mIoU"] == pytest.approx(np.nanmean(expected))


def test_jaccard_equals_torchmetrics_where_it_is_installed() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    import torch

    for seed in range(CASES):
        truth, found, classes = _case(seed)
        found = np.maximum(found, 0)
        if classes < 2 or not (truth >= 0).any():
            continue
        theirs = functional.multiclass_jaccard_index(
            torch.from_numpy(found).long(), torch.from_numpy(truth).long(), classes, ignore_index=-1
        )
        assert measures(confusion(truth, found, classes))["mIoU"] == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.parametrize(
    ("truth", "found", "classes", "expected"),
    [
        ([[0, 1]], [[0, 1]], 2, 1.0),
        ([[0, 0]], [[1, 1]], 2, 0.0),
        ([[0, 0]], [[0, 1]], 3, 0.25),  # class 1 only predicted: 0 and counted; class 2 absent: not counted
        ([[0, -1]], [[0, 1]], 2, 1.0),  # what is not scored is no false positive
        ([[0, 0]], [[0, -1]], 1, 0.5),  # nothing found is missed, and wrong nowhere
        ([[0, 2]], [[0, 0]], 2, 0.5),  # scored but outside all classes (index C): a false positive
    ],
    ids=["perfect", "all wrong", "absent and only predicted", "ignored", "nothing found", "outside all classes"],
)
def test_edges_of_miou(truth, found, classes, expected) -> None:
    assert measures(confusion(np.array(truth), np.array(found), classes))["mIoU"] == pytest.approx(expected)


def test_an_image_that_is_ignored_whole_counts_nothing() -> None:
    counts = confusion(np.full((4, 4), -1), np.zeros((4, 4), int), 2)
    assert counts.sum() == 0
    assert math.isnan(measures(counts)["mIoU"])
    assert math.isnan(measures(counts)["aAcc"])
    assert math.isnan(image_miou(counts))


def test_counts_stay_exact_over_2_to_the_24_pixels() -> None:
    counts = np.zeros((3, 3), np.int64)
    counts[0, 0], counts[0, 1] = 2**24, 1
    assert iou(counts)[0] == 2**24 / (2**24 + 1)  # float32 sums would say 1.0
    big = confusion(np.zeros((4097, 4096), np.int16), np.zeros((4097, 4096), np.int16), 1)
    assert big[0, 0] == 4097 * 4096 > 2**24


def test_847_classes_do_not_wrap() -> None:
    truth = np.arange(847, dtype=np.int16).reshape(7, 121)
    counts = confusion(truth, truth, 847)
    assert measures(counts)["mIoU"] == 1.0
    assert counts[846, 846] == 1
    assert confused(confusion(truth, np.roll(truth, 1, axis=1), 847), most=3)[0][2] == 1


def test_frequency_weights_and_accuracies() -> None:
    counts = confusion(np.array([[0, 0, 0, 1]]), np.array([[0, 0, 1, 1]]), 2)
    table, rows = measures(counts), per_class(counts)
    assert table["aAcc"] == 0.75
    assert table["mAcc"] == pytest.approx((2 / 3 + 1) / 2)
    assert table["fwIoU"] == pytest.approx(0.75 * 2 / 3 + 0.25 * 1 / 2)
    assert table["mDice"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    np.testing.assert_allclose(rows["precision"], [1, 0.5])


def _cv2_boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """The authors' definition: the mask less its erosion by a 3 x 3 square, `distance` times, zero outside."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return mask & (eroded == 0)


def test_boundaries_equal_erosion_by_opencv_on_500_random_cases() -> None:
    for seed in range(CASES):
        truth, found, classes = _case(seed)
        ratio = (0.02, 0.05, 0.1, 0.2)[seed % 4]
        distance = width(*truth.shape, ratio)
        counts = boundary_counts(truth, found, classes, ratio)
        for index in range(classes):
            t, f = (_cv2_boundary(labels == index, distance) & (truth >= 0) for labels in (truth, found))
            expected = [(t & f).sum(), t.sum(), f.sum()]
            assert counts[:, index].tolist() == expected, (seed, index)
        ours = boundary_iou(counts)
        assert ((ours >= 0) | np.isnan(ours)).all()


def test_the_border_of_the_image_is_an_outline() -> None:
    assert boundary(np.zeros((7, 9), np.int16), 1).sum() == 7 * 9 - 5 * 7
    assert boundary(np.zeros((3, 3), np.int16), 5).all()


def test_calibration_equals_counting_by_hand_on_500_random_cases() -> None:
    for seed in range(CASES):
        truth, found, _ = _case(seed)
        rng = np.random.default_rng(seed)
        confidence = rng.random(truth.shape).astype(np.float32)
        confidence[rng.random(truth.shape) < 0.1] = 1.0
        result = calibration(calibration_counts(truth, found, confidence))
        scored = (truth >= 0) & (found >= 0)
        if not scored.any():
            assert math.isnan(result["ECE"])
            continue
        values, right = confidence[scored].astype(float), (truth == found)[scored]
        place = np.minimum((np.rint(values * 2**20) / 2**20 * 15).astype(int), 14)
        gaps = [
            abs(right[place == b].mean() - values[place == b].mean()) * (place == b).mean() for b in np.unique(place)
        ]
        assert result["ECE"] == pytest.approx(sum(gaps), abs=2e-6)


def test_calibration_equals_torchmetrics_where_it_is_installed() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    import torch

    for seed in range(CASES):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(1, 400))
        chance = rng.random(count).astype(np.float32) * 0.999
        right = rng.random(count) < chance ** rng.uniform(0.3, 3)
        # With two labels and the probability of label 1, torchmetrics takes the probability itself as the confidence.
        given = (torch.from_numpy(chance), torch.from_numpy(right).long())
        ours = calibration(calibration_counts(right[None].astype(int), np.ones((1, count), int), chance[None]))
        for norm, name in (("l1", "ECE"), ("max", "MCE")):
            theirs = functional.binary_calibration_error(*given, n_bins=15, norm=norm)
            assert ours[name] == pytest.approx(float(theirs), abs=1e-5), seed


def test_calibration_sums_do_not_depend_on_order() -> None:
    rng = np.random.default_rng(1)
    truth, found = rng.integers(0, 3, (2, 40, 8))
    confidence = rng.random((40, 8)).astype(np.float32)
    whole = calibration_counts(truth, found, confidence)
    parts = sum(
        calibration_counts(truth[i : i + 1], found[i : i + 1], confidence[i : i + 1]) for i in range(39, -1, -1)
    )
    np.testing.assert_array_equal(whole, parts)
