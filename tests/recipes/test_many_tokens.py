"""What is done in parts over many tokens gives what it gives in one."""

from __future__ import annotations

import torch

from densevl.recipes import run


def test_an_mlp_runs_some_tokens_at_a_time(monkeypatch) -> None:
    mlp, x = torch.nn.Sequential(torch.nn.Linear(6, 24), torch.nn.GELU(), torch.nn.Linear(24, 6)), torch.randn(2, 30, 6)
    want = run._by_tokens(mlp, x)
    monkeypatch.setattr(run, "WIDE_TOKENS", 7)
    torch.testing.assert_close(run._by_tokens(mlp, x), want)
