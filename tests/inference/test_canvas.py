"""Window tokens averaged as they come are those averaged all at once, by hand."""

from __future__ import annotations

import pytest
import torch

from densevl.inference import WindowGrid
from densevl.inference.canvas import Canvas


@pytest.mark.parametrize("step", [1, 3, 100], ids=["one-by-one", "some", "all"])
@pytest.mark.parametrize(("crop", "stride"), [(16, 16), (16, 8), (None, 8)], ids=["apart", "overlapping", "whole"])
def test_tokens_are_averaged_where_windows_overlap(crop, stride, step) -> None:
    windows, batch, prefix = WindowGrid.place(40, 27, crop, stride, 4, "patch"), 2, 3
    h, w = windows.rows.tokens, windows.cols.tokens
    tokens = torch.randn(len(windows) * batch, prefix + h * w, 5, dtype=torch.float64)
    canvas = Canvas(windows, batch, prefix)
    for part in tokens.split(step * batch):
        canvas.add(part)
    got = canvas.mean()
    by_window = tokens.unflatten(0, (-1, batch))
    torch.testing.assert_close(got[:, :prefix], by_window[:, :, :prefix].mean(dim=0))
    grid = got[:, prefix:].unflatten(1, canvas.grid)
    for y in range(canvas.grid[0]):
        for x in range(canvas.grid[1]):
            seen = [
                part[:, prefix + (y - top // 4) * w + x - left // 4]
                for (top, left), part in zip(windows.corners, by_window, strict=True)
                if 0 <= y - top // 4 < h and 0 <= x - left // 4 < w
            ]
            torch.testing.assert_close(grid[:, y, x], torch.stack(seen).mean(dim=0))


def test_windows_may_give_finer_tokens() -> None:
    windows = WindowGrid.place(16, 16, 16, 16, 4, "patch")
    canvas = Canvas(windows, 1)
    tokens = torch.randn(1, 64, 2)
    canvas.add(tokens, (8, 8))
    assert canvas.grid == (8, 8)
    assert torch.equal(canvas.mean(), tokens)
