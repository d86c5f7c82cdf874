"""Fusion of judgements in log space."""

from __future__ import annotations

import pytest
import torch

from densevl.errors import OptionError
from densevl.regions.fusion import ScoreSource, entropy, fuse, uncertain


def logp(seed: int, rows: int = 4, columns: int = 3) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.manual_seed(seed)).log_softmax(dim=1)


def test_geometric_is_the_formula_of_the_papers() -> None:
    one, other = logp(0), logp(1)
    weight = torch.tensor([0.4, 0.8, 0.4])  # of FC-CLIP: less where the other was trained
    found = fuse([ScoreSource(one, 1 - weight), ScoreSource(other, weight)]).exp()
    product = one.exp() ** (1 - weight) * other.exp() ** weight
    torch.testing.assert_close(found, product / product.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("mode", ["geometric", "arithmetic", "max"])
def test_a_source_without_a_say_changes_nothing(mode) -> None:
    one, other = logp(0), logp(1)
    valid = torch.tensor([True, False, True, False])
    found = fuse([ScoreSource(one), ScoreSource(other, 2.0, valid)], mode)
    torch.testing.assert_close(found[~valid], one[~valid])
    assert (found[valid] - one[valid]).abs().max() > 0.01
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(4))


def test_arithmetic_and_max() -> None:
    one, other = logp(0), logp(1)
    mean = fuse([ScoreSource(one), ScoreSource(other)], "arithmetic")
    torch.testing.assert_close(mean.exp(), (one.exp() + other.exp()) / 2)
    largest = torch.maximum(one, other)
    torch.testing.assert_close(fuse([ScoreSource(one), ScoreSource(other)], "max"), largest.log_softmax(dim=1))


def test_probabilities_that_underflow_survive() -> None:
    tiny = torch.tensor([[0.0, -400.0, -900.0]])
    found = fuse([ScoreSource(tiny), ScoreSource(tiny.flip(1))])
    assert torch.isfinite(found).all()
    assert found.argmax() == 1


def test_a_class_that_is_impossible_stays_so_and_all_of_them_is_no_nan() -> None:
    one = torch.tensor([[0.0, -torch.inf]])
    assert fuse([ScoreSource(one), ScoreSource(logp(0, 1, 2))]).exp().tolist() == [[1, 0]]
    nobody = ScoreSource(logp(0, 1, 2), valid=torch.tensor([False]))
    torch.testing.assert_close(fuse([nobody]).exp(), torch.full((1, 2), 0.5))


def test_the_most_uncertain_few() -> None:
    rows = torch.tensor([[0.98, 0.01, 0.01], [1 / 3] * 3, [0.5, 0.5, 0], [1, 0, 0], [1 / 3] * 3]).log()
    assert entropy(rows).tolist() == pytest.approx([0.1019, 1, 0.6309, 0, 1], abs=1e-3)
    assert uncertain(rows, 0.4).tolist() == [1, 4]
    assert uncertain(rows, 0.2).tolist() == [1]
    assert uncertain(rows, 1.0, least=0.5).tolist() == [1, 2, 4]
    assert uncertain(rows[:0]).tolist() == []


@pytest.mark.parametrize(
    ("sources", "mode", "match"),
    [
        ([], "geometric", "at least one"),
        ([ScoreSource(logp(0)), ScoreSource(logp(0, 3))], "geometric", "all .R, C. alike"),
        ([ScoreSource(logp(0), -1.0)], "geometric", "negative weight"),
        ([ScoreSource(logp(0))], "geometrical", "closest: geometric"),
    ],
)
def test_what_cannot_be_fused_is_refused(sources, mode, match) -> None:
    with pytest.raises(OptionError, match=match):
        fuse(sources, mode)
