"""TextSpan on heads whose directions are known."""

from __future__ import annotations

import numpy as np
import torch

from conftest import close
from densevl.explaining.textspan import text_span


def unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def test_a_head_of_two_directions_returns_those_words() -> None:
    texts = torch.linalg.qr(torch.randn(16, 12).double())[0].T
    weights = torch.randn(50, 2).double() * torch.tensor([3.0, 1.0]).double()
    head = weights @ texts[[7, 2]] + torch.randn(16).double() * 0
    found = text_span(head, texts, 5)
    assert [spanned.text for spanned in found] == [7, 2]
    close(torch.tensor([spanned.share for spanned in found]).sum(), 1.0)


def test_the_mean_of_a_head_says_nothing() -> None:
    """A constant far longer than what varies would win without centring."""
    texts = torch.eye(6).double()
    head = 100 * texts[0] + torch.randn(40, 1).double() * texts[4]
    assert text_span(head, texts, 1)[0].text == 4


def test_choices_are_those_of_the_algorithm_by_loops() -> None:
    head, texts = torch.randn(9, 12).double(), unit(torch.randn(30, 12).double())
    found = text_span(head, texts, 4, rank=5)
    data, words = head.numpy().copy(), texts.numpy().copy()
    rows = np.linalg.svd(data)[2][:5]
    words = words @ rows.T @ rows
    data -= data.mean(axis=0)
    whole, want = (data**2).sum(), []
    for _ in range(4):
        best = max(range(len(words)), key=lambda index: np.std(data @ words[index]))
        row = words[best] / np.linalg.norm(words[best])
        want.append((best, sum((line @ row) ** 2 for line in data) / whole))
        data = np.stack([line - (line @ row) * row for line in data])
        words = np.stack([line - (line @ row) * row for line in words])
    assert [spanned.text for spanned in found] == [best for best, _ in want]
    close(torch.tensor([spanned.share for spanned in found]), torch.tensor([share for _, share in want]))


def test_no_word_is_taken_twice_and_none_of_what_has_vanished() -> None:
    texts = unit(torch.randn(5, 8).double())
    found = text_span(torch.randn(20, 8).double(), torch.cat([texts, texts]), 10)
    assert len({spanned.text % 5 for spanned in found}) == len(found) == 5
    assert text_span(torch.ones(4, 8).double(), texts, 3) == []
