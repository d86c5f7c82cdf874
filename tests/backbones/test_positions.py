"""Positional grids: each rule is torch's own call, and a matching grid is left alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from densevl.backbones.positions import position_matrix, resize_positions
from densevl.errors import RecipeError
from densevl.recipes.recipe import POSITION_RULES

CALLS = {
    "size": lambda n, g: {"size": n, "mode": "bicubic"},
    "size_antialias": lambda n, g: {"size": n, "mode": "bicubic", "antialias": True},
    "scale_factor": lambda n, g: {
        "scale_factor": tuple((a + 0.1) / b for a, b in zip(n, g, strict=True)),
        "mode": "bicubic",
    },
    "bilinear_antialias": lambda n, g: {"size": n, "mode": "bilinear", "antialias": True},
    "bilinear": lambda n, g: {"size": n, "mode": "bilinear"},
}
SQUARE = {  # then cropped
    "square": lambda n, g: {"size": (max(n), max(n)), "mode": "bilinear"},
    "square_aligned": lambda n, g: {"size": (max(n), max(n)), "mode": "bilinear", "align_corners": True},
}
GRIDS = [
    ((4, 6), (7, 5)),
    ((14, 14), (21, 28)),
    ((14, 14), (5, 9)),
    ((7, 7), (7, 40)),
    ((16, 16), (1, 3)),
    ((3, 2), (50, 61)),
]


@pytest.mark.parametrize(("source", "grid"), GRIDS, ids=str)
@pytest.mark.parametrize("rule", [*CALLS, *SQUARE])
def test_a_rule_is_the_call_of_torch_it_names(rule, source, grid) -> None:
    table = torch.randn(1 + source[0] * source[1], 8)
    cells = table[1:].unflatten(0, source).permute(2, 0, 1)[None]
    resized = F.interpolate(cells, **{"align_corners": False, **{**CALLS, **SQUARE}[rule](grid, source)})[0]
    want = resized[:, : grid[0], : grid[1]].permute(1, 2, 0).flatten(0, 1)
    got = resize_positions(table, source, grid, rule)
    torch.testing.assert_close(got, torch.cat([table[:1], want]), atol=0, rtol=0)
    longer = (max(grid) - grid[0], max(grid) - grid[1])
    more = {"scale_factor": (0.1, 0.1), **dict.fromkeys(SQUARE, longer)}.get(rule, (0, 0))
    shifts = torch.tensor(more, dtype=torch.float64)
    rows, cols = (position_matrix(n, g, rule, s) for n, g, s in zip(grid, source, shifts, strict=True))
    written_out = torch.einsum("yi,xj,ijd->yxd", rows, cols, table[1:].unflatten(0, source)).flatten(0, 1)
    torch.testing.assert_close(written_out, want, atol=2e-5, rtol=0)


def test_half_positions_are_rounded_on_any_grid() -> None:
    """CLIPer's code rounds even where nothing is resized."""
    table = torch.randn(25, 8)
    assert {*CALLS, *SQUARE, "bilinear_half"} == set(POSITION_RULES)
    assert torch.equal(resize_positions(table, (4, 6), (4, 6), "bilinear_half"), table.half().float())
    rounded = resize_positions(table, (4, 6), (7, 5), "bilinear").half().float()
    assert torch.equal(resize_positions(table, (4, 6), (7, 5), "bilinear_half"), rounded)


@pytest.mark.parametrize(("rule", "grid"), [*((rule, (4, 6)) for rule in CALLS), *((rule, (5, 5)) for rule in SQUARE)])
def test_the_trained_grid_is_untouched(rule, grid) -> None:
    table = torch.randn(1 + grid[0] * grid[1], 8)
    assert resize_positions(table, grid, grid, rule) is table


@pytest.mark.parametrize("rule", POSITION_RULES)
@pytest.mark.parametrize("grid", [(1, 1), (3, 40), (37, 2), (64, 64)])
def test_any_grid_has_the_right_size(rule, grid) -> None:
    assert resize_positions(torch.randn(1 + 14 * 14, 4), (14, 14), grid, rule).shape == (1 + grid[0] * grid[1], 4)


def test_unknown_rule_lists_the_known() -> None:
    with pytest.raises(RecipeError, match=r"no position rule 'bicubic'.*size_antialias"):
        resize_positions(torch.randn(5, 2), (2, 2), (3, 3), "bicubic")
