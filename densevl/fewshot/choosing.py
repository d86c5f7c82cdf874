"""How much examples count beside words, chosen on the examples themselves, each judged by the others.

Shape letters: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch.nn import functional as F

from densevl.fewshot.head import settle

Setting = TypeVar("Setting")
ENOUGH = 1024  # examples that are judged by the others; of more, evenly spread ones are taken
JUDGED = 2048  # examples that settings are chosen on by folds
FOLDS = 4


def spread(count: int, most: int = ENOUGH) -> torch.Tensor:
    """Indices of at most so many of `count` things, evenly spread: int64."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def rank(labels_N: torch.Tensor) -> torch.Tensor:
    """The how-manieth of its class each sample is: (N,) int64 from 0."""
    member = F.one_hot(labels_N)
    return (member.cumsum(dim=0) * member).sum(dim=1) - 1


def folds(labels_N: torch.Tensor, count: int = FOLDS) -> Iterator[torch.Tensor]:
    """Which examples each fold leaves out, (N,) bool: none of classes with a single one, and never all of a class."""
    several = torch.bincount(labels_N)[labels_N] > 1
    for number in range(count):
        out = (rank(labels_N) % count == number) & several
        if out.any():
            yield out


def best(
    candidates: Iterable[tuple[Setting, torch.Tensor]],
    words_NC: torch.Tensor,
    seen_C: torch.Tensor,
    labels_N: torch.Tensor,
) -> Setting | None:
    """The setting under which samples are most probable, all classes of equal weight; the first of equals.

    One wrong label among the N samples is allowed for (label smoothing of 1 / (N + 1)): where every sample is told
    apart, the likelihood alone would run to the largest weight there is, and probabilities to 0 and 1.

    Args:
        candidates: settings, and the logits (N, C) that they give samples which the head has not seen.

    Returns:
        None without candidates or samples.
    """
    counts = torch.bincount(labels_N, minlength=len(seen_C))
    weights = 1 / counts[labels_N].double()
    chosen, highest, wrong = None, -torch.inf, 1 / (len(labels_N) + 1)
    for setting, judged in candidates:
        logp = settle(judged.double(), words_NC.double(), seen_C).log_softmax(dim=-1)
        own = logp.gather(1, labels_N[:, None])[:, 0]
        smooth = (1 - wrong) * own + wrong * logp[:, seen_C].mean(dim=1)
        likelihood = float((weights * smooth).sum())
        if likelihood > highest:
            chosen, highest = setting, likelihood
    return chosen


def equal_say(words_NC: torch.Tensor, gain_NC: torch.Tensor, labels_N: torch.Tensor, seen_C: torch.Tensor) -> float:
    """The factor by which gains differ between classes as much as the text logits do, or by 1 where those hardly do.

    For examples that stand alone. Own classes are left out where more than two have examples: an example is like
    itself.
    """
    if int(seen_C.sum()) < 2:
        return 1.0
    counted = seen_C.expand(len(labels_N), -1).clone()
    if int(seen_C.sum()) > 2:
        counted.scatter_(1, labels_N[:, None], False)

    def deviation(x_NC: torch.Tensor) -> torch.Tensor:
        mean = (x_NC * counted).sum(dim=1, keepdim=True) / counted.sum(dim=1, keepdim=True)
        return (((x_NC - mean) * counted) ** 2).sum().div(counted.sum()).sqrt()

    return float(deviation(words_NC).clamp(min=1) / deviation(gain_NC).clamp(min=1e-12))
