"""Numbers that held on one machine only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from case import Case, cases

from conftest import seed_by
from densevl.backbones.lowered.linears import Int8Linear


def _drawn(name: str) -> list[float]:
    seed_by(name)
    return [*torch.randn(3).tolist(), *np.random.standard_normal(3)]


def _saturated() -> float:
    """The share by which an int8 product of the largest bytes is off; oneDNN without VNNI saturates in 16 bits."""
    x, weight = torch.full((3, 96), 2.0), torch.full((40, 96), 0.5)
    weight[1::2] *= -1
    return float((Int8Linear(weight, None)(x) / (x @ weight.T) - 1).abs().max())


TABLE = (
    Case(
        "a test that passes or fails by what ran before it",
        "numbers drawn in tests",
        lambda folder: (_drawn("one"), _drawn("other"), _drawn("one")),
        right=lambda drawn: drawn[0] == drawn[2] != drawn[1],
    ),
    Case(
        "int8 that saturates where the CPU has no instruction for it",
        "the largest values that int8 holds",
        lambda folder: _saturated(),
        right=lambda share: share < 1e-5,
    ),
)


@cases(*TABLE)
def test_numbers_hold_on_any_cpu(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)
