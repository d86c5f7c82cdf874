"""What is done in parts over many tokens gives what it gives in one."""

from __future__ import annotations

from dataclasses import replace

import torch

from densevl.recipes import attention, get, rewire
from densevl.recipes.attention import Looks, rewired_attention


def test_logits_are_summed_a_head_at_a_time(monkeypatch) -> None:
    recipe = replace(get("naclip"), terms=("qq", "kk"), combine="logit-sum")
    q, k, v = torch.randn(3, 2, 3, 30, 8)
    looks = Looks({"q": q, "k": k, "v": v}, (5, 6), 0, None, None)
    want = rewired_attention(looks, recipe)
    monkeypatch.setattr(attention, "JOINED_TOKENS", 29)
    torch.testing.assert_close(rewired_attention(looks, recipe), want)


def test_an_mlp_runs_some_tokens_at_a_time(monkeypatch) -> None:
    mlp, x = torch.nn.Sequential(torch.nn.Linear(6, 24), torch.nn.GELU(), torch.nn.Linear(24, 6)), torch.randn(2, 30, 6)
    want = rewire._by_tokens(mlp, x)
    monkeypatch.setattr(rewire, "WIDE_TOKENS", 7)
    torch.testing.assert_close(rewire._by_tokens(mlp, x), want)
