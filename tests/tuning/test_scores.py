"""The arithmetic of tuning against loops: measures, the bootstrap, the permutation test."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from densevl.evaluation.metrics.confusion import confusion, measures
from densevl.tuning.scores import MEASURES, difference, mean_iou, mean_recall
from tests.conftest import close


def counts(number: int, classes: int = 3, best: float = 0.7, seed: int = 0) -> np.ndarray:
    """Counts (N, 3, C) of pictures on which so much of each class is right, more or less."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(20, 60, (number, classes))
    right = rng.binomial(truth, best)
    return np.stack([right, truth, right + rng.integers(0, 20, (number, classes))], axis=1)


def by_loops(total: np.ndarray, recall: bool) -> float:
    """The measure of counts (3, C) in fractions."""
    shares = [
        Fraction(int(right), int(truth if recall else truth + found - right))
        for right, truth, found in total.T
        if truth > 0
    ]
    return float(sum(shares) / len(shares)) if shares else math.nan


@pytest.mark.parametrize(("measure", "recall"), [(mean_iou, False), (mean_recall, True)])
@pytest.mark.parametrize("absent", [(), (1,), (0, 1, 2)], ids=["all classes", "one not in the truth", "none in it"])
def test_measures_are_means_over_the_classes_of_the_truth(measure, recall, absent) -> None:
    own = counts(4)
    own[:, :2, list(absent)] = 0  # found, but neither right nor there
    np.testing.assert_allclose(measure(own), [by_loops(one, recall) for one in own], rtol=1e-12)


def test_mean_iou_is_that_of_an_evaluation_where_every_class_occurs() -> None:
    rng = np.random.default_rng(0)
    truth, found = rng.integers(-1, 4, (20, 30)), rng.integers(-1, 4, (20, 30))
    matrix = confusion(truth, found, 4)
    own = np.stack([np.diagonal(matrix)[:-1], matrix[:-1].sum(axis=1), matrix[:, :-1].sum(axis=0)])
    close(np.float64(mean_iou(own)), np.float64(measures(matrix)["mIoU"]))


@pytest.mark.parametrize("number", [3, 5, 8])
def test_a_permutation_test_tries_every_way_to_swap(number) -> None:
    one, other = counts(number, seed=1), counts(number, best=0.5, seed=2)
    value = by_loops(one.sum(axis=0), False) - by_loops(other.sum(axis=0), False)
    as_extreme = 0
    for ways in itertools.product([False, True], repeat=number):
        kept = sum(other[i] if swap else one[i] for i, swap in enumerate(ways))
        moved = sum(one[i] if swap else other[i] for i, swap in enumerate(ways))
        as_extreme += abs(by_loops(kept, False) - by_loops(moved, False)) >= abs(value) - 1e-12
    found = difference(one, other, mean_iou)
    close(np.float64(found.value), np.float64(value))
    assert found.p == as_extreme / 2**number


def test_five_pictures_are_never_sure_and_six_can_be() -> None:
    for number, sure in ((5, False), (6, True)):
        assert difference(counts(number, best=0.95), counts(number, best=0.2), mean_iou).sure is sure


def test_differences_of_nothing_but_noise_are_seldom_sure() -> None:
    found = [difference(counts(12, seed=i), counts(12, seed=1000 + i), mean_iou, i).sure for i in range(60)]
    assert sum(found) <= 9  # 3 are expected; more than 9 come once in a thousand times


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_an_interval_turns_round_with_the_difference(measure) -> None:
    one, other = counts(9, seed=3), counts(9, best=0.5, seed=4)
    here, there = difference(one, other, measure, 5), difference(other, one, measure, 5)
    assert here.low < here.value < here.high
    close(np.array([here.value, here.low, here.high]), -np.array([there.value, there.high, there.low]))
    assert here.p == there.p


def test_intervals_hold_the_true_difference_about_as_often_as_they_say() -> None:
    """Pictures whose classes are right by 0.7 and 0.6 of 40 pixels: recalls differ by 0.1."""
    rng, inside = np.random.default_rng(0), 0
    for trial in range(60):
        truth = np.full((15, 2), 40)
        rows = [np.stack([rng.binomial(truth, p), truth, truth], axis=1) for p in (0.7, 0.6)]
        found = difference(rows[0], rows[1], mean_recall, trial)
        inside += found.low <= 0.1 <= found.high
    assert inside >= 50


def test_the_same_counts_differ_by_nothing() -> None:
    found = difference(counts(7), counts(7), mean_iou)
    assert (found.value, found.low, found.high, found.p, found.sure) == (0, 0, 0, 1, False)
