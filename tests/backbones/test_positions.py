"""Positional grids: each rule is torch's own call, and a matching grid is left alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from densevl.backbones.positions import resize_positions
from densevl.errors import RecipeError
from densevl.recipes.recipe import POSITION_RULES

CALLS = {
    "size": {"size": (7, 5), "mode": "bicubic"},
    "size_antialias": {"size": (7, 5), "mode": "bicubic", "antialias": True},
    "scale_factor": {"scale_factor": (7.1 / 4, 5.1 / 6), "mode": "bicubic"},
    "bilinear": {"size": (7, 5), "mode": "bilinear"},
}


@pytest.mark.parametrize("rule", CALLS)
def test_rule_is_the_call_it_names(rule) -> None:
    table = torch.randn(1 + 24, 8)
    cells = table[1:].view(1, 4, 6, 8).permute(0, 3, 1, 2)
    want = F.interpolate(cells, align_corners=False, **CALLS[rule])[0].permute(1, 2, 0).reshape(35, 8)
    got = resize_positions(table, (4, 6), (7, 5), rule)
    torch.testing.assert_close(got, torch.cat([table[:1], want]))


def test_half_positions_are_rounded_on_any_grid() -> None:
    """CLIPer's code rounds even where nothing is resized."""
    table = torch.randn(25, 8)
    assert {*CALLS, "bilinear_half"} == set(POSITION_RULES)
    assert torch.equal(resize_positions(table, (4, 6), (4, 6), "bilinear_half"), table.half().float())
    rounded = resize_positions(table, (4, 6), (7, 5), "bilinear").half().float()
    assert torch.equal(resize_positions(table, (4, 6), (7, 5), "bilinear_half"), rounded)


@pytest.mark.parametrize("rule", CALLS)
def test_the_trained_grid_is_untouched(rule) -> None:
    table = torch.randn(25, 8)
    assert resize_positions(table, (4, 6), (4, 6), rule) is table


@pytest.mark.parametrize("rule", POSITION_RULES)
@pytest.mark.parametrize("grid", [(1, 1), (3, 40), (37, 2), (64, 64)])
def test_any_grid_has_the_right_size(rule, grid) -> None:
    assert resize_positions(torch.randn(1 + 14 * 14, 4), (14, 14), grid, rule).shape == (1 + grid[0] * grid[1], 4)


def test_unknown_rule_lists_the_known() -> None:
    with pytest.raises(RecipeError, match=r"no position rule 'bicubic'.*size_antialias"):
        resize_positions(torch.randn(5, 2), (2, 2), (3, 3), "bicubic")
