"""Masks at tokens: nothing is lost, however small the mask or odd the windows."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from conftest import close
from densevl.inference import WindowGrid
from densevl.proposals.base import Proposals
from densevl.regions.operators.dense import token_means
from densevl.regions.operators.pull import pull, token_plan, window_areas, window_cover

GRIDS = {
    "one window": WindowGrid.place(48, 64, None, 1, 8),
    "windows that overlap": WindowGrid.place(48, 64, 32, 16, 8),
    "windows that are padded": WindowGrid.place(45, 61, 30, 20, 8),
    "one patch grid": WindowGrid.place(45, 61, 32, 16, 8, "patch"),
}


def some_masks(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A square of 6, a speck, stripes, everything, and nothing."""
    masks = np.zeros((5, *size), bool)
    masks[0, 10:16, 21:27] = True
    masks[1, -1, -1] = True
    masks[2, ::3] = True
    masks[3] = True
    return masks


@pytest.mark.parametrize("name", GRIDS)
def test_pooling_equals_the_mean_of_the_upsampled_features(name) -> None:
    size = (70, 90)
    windows, masks = GRIDS[name], some_masks(size)
    plan = windows.plan(*size)
    tokens = torch.randn(plan.rows.matrix.shape[1], plan.cols.matrix.shape[1], 5, generator=torch.manual_seed(0))
    full = torch.einsum("hy,wx,yxc->hwc", plan.rows.matrix, plan.cols.matrix, tokens)
    means = token_means(tokens, windows, Proposals.from_masks(masks))
    for mask, mean in zip(masks[:4], means, strict=False):
        torch.testing.assert_close(mean, full[torch.from_numpy(mask)].mean(dim=0), atol=1e-5, rtol=1e-4)
    assert means[4].abs().max() == 0, "an empty mask"


@pytest.mark.parametrize("name", GRIDS)
def test_cover_is_the_share_of_each_token(name) -> None:
    windows = GRIDS[name]
    size = (windows.rows.length * 2, windows.cols.length * 3)
    cover = pull(Proposals.from_masks(np.ones((1, *size), bool)), *token_plan(windows, size))[0]
    assert cover.max() <= 1 + 1e-5
    padded = any((axis.before, axis.after, *axis.margin) != (0, 0, 0, 0) for axis in (windows.rows, windows.cols))
    if not padded:
        torch.testing.assert_close(cover, torch.ones_like(cover))
    else:
        assert cover.min() < 1, "a token beyond the border is not covered"


@pytest.mark.parametrize(("length", "size"), [(224, 600), (336, 1000), (448, 1333), (224, 97)])
@pytest.mark.parametrize("crop", [None, 112])
def test_a_pixel_has_a_share_of_the_tokens_that_it_touches_and_of_no_other(length, size, crop) -> None:
    axis = WindowGrid.place(length, length, crop, 56, 14).rows
    scale = Fraction(size, length)
    token = Fraction(axis.before + axis.crop + axis.after, axis.tokens) * scale
    firsts = [(start - axis.before - axis.margin[0]) * scale for start in axis.starts]
    starts = [first + index * token for first in firsts for index in range(axis.tokens)]
    shares = [[max(0, min(y + 1, at + token) - max(y, at)) / token for at in starts] for y in range(size)]
    got = token_plan(WindowGrid(axis, axis, "pixel"), (size, size))[0]
    want = torch.tensor(shares, dtype=torch.float64)
    close(got, want)
    assert torch.equal(got > 0, want > 0)


def test_a_window_covers_what_the_whole_pull_says() -> None:
    windows, size = GRIDS["windows that overlap"], (96, 128)
    masks = Proposals.from_masks(some_masks(size))
    whole = pull(masks, *token_plan(windows, size))
    areas = window_areas(masks, windows)
    assert areas.shape == (len(windows), 5)
    assert areas[:, 3].tolist() == [16] * len(windows)
    part = window_cover(masks, windows, 4, [2, 0])
    torch.testing.assert_close(part, whole[[2, 0], 4:8, 4:8].flatten(1))


@pytest.mark.parametrize("side", [1, 2, 6, 8, 10, 14])
def test_no_small_mask_is_lost(side) -> None:
    size = (336, 336)
    places = [(3, 5), (100, 201), (329, 329)]
    masks = np.zeros((len(places), *size), bool)
    for mask, (top, left) in zip(masks, places, strict=True):
        mask[top : top + side, left : left + side] = True
    windows = WindowGrid.place(336, 336, None, 1, 14)
    weights = pull(
        Proposals.from_masks(masks), *(axis.matrix for axis in (windows.plan(*size).rows, windows.plan(*size).cols))
    )
    torch.testing.assert_close(
        weights.sum(dim=(1, 2)), torch.from_numpy(masks.sum(axis=(1, 2))).float(), rtol=1e-4, atol=0
    )
