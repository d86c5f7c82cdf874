"""Which tokens are examples: majority of their pixels, enough of them, and no more than the cap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densevl.errors import OptionError
from densevl.fewshot.tokens import chosen_tokens, token_labels
from densevl.inference import WindowGrid


def grid(height: int, width: int, crop: int | None = None, stride: int = 8) -> WindowGrid:
    return WindowGrid.place(height, width, crop, stride, 8)


def test_a_token_has_the_class_that_covers_most_of_it_where_that_is_enough() -> None:
    labels = np.full((8, 24), -1)
    labels[:, 0:6], labels[:, 6:8] = 2, 5  # three quarters, one quarter
    labels[:, 8:13], labels[:, 13:16] = 1, 0  # five eighths
    found, weights = token_labels(labels, grid(8, 24))
    assert found.tolist() == [[2, -1, -1]]
    assert torch.allclose(weights, torch.tensor([[0.75, 0, 0]]))
    found, weights = token_labels(labels, grid(8, 24), coverage=0.5)
    assert found.tolist() == [[2, 1, -1]]
    assert weights[0, 1] == 0.625


def test_a_token_that_two_classes_share_evenly_goes_to_the_smaller_one() -> None:
    halves = [np.random.permutation(3600).reshape(60, 60) % 2 for _ in range(49)]
    labels = np.block([halves[row : row + 7] for row in range(0, 49, 7)])
    assert not token_labels(labels, grid(56, 56), coverage=0.5)[0].any()


@pytest.mark.parametrize("scale", [1, 3])
def test_maps_are_read_at_their_own_size(scale) -> None:
    labels = np.kron(np.array([[0, 1], [2, -1]]), np.ones((8 * scale, 8 * scale), int))
    found, weights = token_labels(labels, grid(16, 16))
    assert found.tolist() == [[0, 1], [2, -1]]
    assert torch.allclose(weights, (found >= 0).float())


def test_padding_of_windows_belongs_to_no_class() -> None:
    found, weights = token_labels(np.zeros((8, 12), int), grid(8, 12))  # padded by 2 pixels on both sides
    assert found.tolist() == [[0, 0]]
    assert torch.allclose(weights, torch.tensor([[0.75, 0.75]]))


def test_tokens_of_every_window_count() -> None:
    found, _ = token_labels(np.zeros((16, 24), int), grid(16, 24, crop=16))
    assert found.shape == (2, 4)
    assert (found == 0).all()


def test_a_large_thing_counts_no_more_than_the_cap_and_is_sampled_all_over() -> None:
    labels = torch.zeros(20, 20, dtype=torch.int64)
    labels[0, :3], labels[1] = 7, -1
    chosen = chosen_tokens(labels, 100)
    assert len(chosen) == 103
    assert len(chosen.unique()) == 103
    large = chosen[labels.flatten()[chosen] == 0]
    assert large.min() < 10
    assert large.max() == 399
    assert (large.diff() <= 24).all()
    assert len(chosen_tokens(torch.full((2, 2), -1))) == 0


@pytest.mark.parametrize("coverage", [0, 1.1])
def test_an_impossible_coverage_is_refused(coverage) -> None:
    with pytest.raises(OptionError, match="coverage is"):
        token_labels(np.zeros((8, 8), int), grid(8, 8), coverage)
