"""Attention with a grid bias against whole float64 maps."""

from __future__ import annotations

import math

import pytest
import torch

from densevl.kernels import Gaussian, attention, gaussian_bias, grid_attention


def whole_bias(grid: tuple[int, int], std: float, prefix: int) -> torch.Tensor:
    n = prefix + grid[0] * grid[1]
    bias = torch.zeros(n, n, dtype=torch.float64)
    for i in range(prefix, n):
        for j in range(prefix, n):
            (yi, xi), (yj, xj) = divmod(i - prefix, grid[1]), divmod(j - prefix, grid[1])
            bias[i, j] = math.exp(-((yi - yj) ** 2 + (xi - xj) ** 2) / (2 * std * std))
    return bias


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (6, 5)])
def test_gaussian_bias_rows_equal_the_whole_map(grid, prefix) -> None:
    want = whole_bias(grid, 1.7, prefix)
    torch.testing.assert_close(gaussian_bias(grid, 1.7, prefix).double(), want, atol=1e-6, rtol=0)
    for start in range(0, len(want), 4):
        stop = min(start + 4, len(want))
        got = gaussian_bias(grid, 1.7, prefix, start, stop)
        torch.testing.assert_close(got.double(), want[start:stop], atol=1e-6, rtol=0)


@pytest.mark.parametrize("std", [None, 0.8, 5.0])
@pytest.mark.parametrize("drop_prefix_keys", [False, True])
@pytest.mark.parametrize("held_tokens", [10_000, 8], ids=["bias-held", "bias-in-rows"])
def test_grid_attention_equals_the_softmax_written_out(std, drop_prefix_keys, held_tokens, monkeypatch) -> None:
    monkeypatch.setattr(attention, "BIAS_TOKENS", held_tokens)
    monkeypatch.setattr(attention, "BIAS_ROWS", 7)
    grid, prefix = (5, 4), 1
    q, k, v = (torch.randn(2, 3, 21, 8) for _ in range(3))
    keys = slice(prefix if drop_prefix_keys else 0, None)
    logits = q.double() @ k[:, :, keys].double().transpose(-1, -2) * 0.3
    if std is not None:
        logits = logits + whole_bias(grid, std, prefix)[:, keys]
    want = torch.softmax(logits, -1) @ v[:, :, keys].double()
    got = grid_attention(q, k[:, :, keys], v[:, :, keys], grid, prefix, std and Gaussian(std), 0.3)
    torch.testing.assert_close(got.double(), want, atol=5e-6, rtol=0)
