"""Contexts: what stands around the name of a class, as vectors, and the rows that classes get from several of them.

    t_c = normalise mean_m normalise E([v_m; c])

(CoOp, Zhou et al., IJCV 2022; several short ones averaged, as ECO has them, which costs nothing later.)
Shape letters: M contexts, n words of one, W width of a word, S strings, R rows of classes and of words that are none,
E joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self

import torch
from torch.nn import functional as F

from densevl.fewshot.choosing import spread
from densevl.vocabulary.learned_templates import LearnedTemplate

DEVIATION = 0.02  # of words that start at random, as CoOp's
AT_ONCE = 512  # texts whose activations are held; of more, gradients are gathered part by part


class Tower(Protocol):
    """A model whose text tower reads vectors in place of words; see `OpenClipBackbone`."""

    name: str

    @property
    def text_fingerprint(self) -> str: ...

    @property
    def word_width(self) -> int: ...

    def word_vectors(self, text: str) -> torch.Tensor: ...

    def deep_words(self, words_nW: torch.Tensor, before: int, depth: int) -> torch.Tensor: ...

    def encode_learned(
        self, words_TnW: torch.Tensor, nouns: str | Sequence[str], before: int | None = None
    ) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class Contexts:
    """M contexts. Attributes: words: (n, W) float of each. fronts: how many of each stand before the name."""

    words: list[torch.Tensor]
    fronts: list[int]

    @classmethod
    def drawn(cls, tower: Tower, count: int, length: int, seed: int) -> Contexts:
        """Random words before the name."""
        generator = torch.Generator().manual_seed(seed)
        drawn = DEVIATION * torch.randn(count, length, tower.word_width, generator=generator)
        return cls(list(drawn), [length] * count)

    @classmethod
    def of_templates(cls, tower: Tower, templates: Sequence[str], count: int, length: int, seed: int) -> Contexts:
        """The words of some templates, evenly spread among them; where there are too few, random ones besides."""
        named = [templates[index] for index in spread(len(templates), count).tolist()]
        named = [one for one in dict.fromkeys(named) if one.count("{}") == 1 and one.strip() != "{}"]
        halves = [[tower.word_vectors(half.strip()).cpu() for half in one.split("{}")] for one in named]
        rest = cls.drawn(tower, count - len(named), length, seed)
        return cls([*map(torch.cat, halves), *rest.words], [*(len(before) for before, _ in halves), *rest.fronts])

    def deep(self, tower: Tower, depth: int) -> Contexts:
        """They in the first `depth` blocks, reading the same."""
        if depth == 1:
            return self
        own = zip(self.words, self.fronts, strict=True)
        return Contexts([tower.deep_words(words, before, depth) for words, before in own], self.fronts)

    @classmethod
    def read(cls, templates: Sequence[str], device: torch.device | None = None) -> Contexts:
        """Those of learned templates; templates of text are passed over."""
        own = [one for one in templates if isinstance(one, LearnedTemplate)]
        return cls([torch.from_numpy(one.words.copy()).to(device) for one in own], [one.before for one in own])

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Contexts:
        """The words of each changed."""
        return Contexts([change(one) for one in self.words], self.fronts)

    def templates(self, tower: Tower) -> tuple[str, ...]:
        """They as templates, for any words in any pipeline."""
        own = zip(self.words, self.fronts, strict=True)
        return tuple(
            LearnedTemplate(words.detach().float().cpu().numpy(), before, tower.text_fingerprint)
            for words, before in own
        )


class Parts:
    """A dataclass of tensors that are learned beside contexts."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """By name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Each tensor changed."""
        return type(self)(**{name: change(own) for name, own in self.tensors().items()})


def leaf(one: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy to be trained."""
    return one.detach().to(device).clone().requires_grad_(True)


@dataclass(frozen=True, eq=False)
class Spoken:
    """What is said for rows: their strings. Attributes: strings: S of them. member: (R, S), 1 where a row owns one."""

    strings: list[str]
    member: torch.Tensor

    @classmethod
    def of(cls, words: Sequence[Sequence[str]]) -> Spoken:
        """Each row with its strings."""
        member = torch.zeros(len(words), sum(map(len, words)))
        place = 0
        for row, own in enumerate(words):
            member[row, place : place + len(own)] = 1
            place += len(own)
        return cls([string for own in words for string in own], member)


def size(tower: Tower, strings: Sequence[str]) -> float:
    """The root mean square of the numbers that some words are, which the rate of training is a share of."""
    vectors = torch.cat([tower.word_vectors(string) for string in strings])
    return float(vectors.square().mean().sqrt()) if vectors.numel() else 1.0


def unit_prompts(tower: Tower, contexts: Contexts, strings: Sequence[str]) -> torch.Tensor:
    """(M, S, E) unit rows of each string in each context; gradients reach the words."""
    rows = [
        tower.encode_learned(words[None], strings, before)
        for words, before in zip(contexts.words, contexts.fronts, strict=True)
    ]
    return F.normalize(torch.stack(rows), dim=-1)


def joined(prompts_MSE: torch.Tensor, member_RS: torch.Tensor) -> torch.Tensor:
    """(R, E) unit rows."""
    strings_SE = F.normalize(prompts_MSE.mean(dim=0), dim=-1)
    return F.normalize(member_RS.to(strings_SE) @ strings_SE, dim=-1)


def descend(
    tower: Tower, contexts: Contexts, spoken: Spoken, loss: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, float]:
    """Add the gradient of a loss of the rows (R, E) to the words; returns the rows, and the loss.

    Of many texts it is gathered one context and some strings at a time: all rows first, then each part again with its
    own gradient, which is exact.
    """
    strings = spoken.strings
    if len(contexts.words) * len(strings) <= AT_ONCE:
        rows = joined(unit_prompts(tower, contexts, strings), spoken.member)
        value = loss(rows)
        value.backward()
        return rows.detach(), float(value.detach())
    with torch.no_grad():
        held = unit_prompts(tower, contexts, strings)
    held.requires_grad_(True)
    rows = joined(held, spoken.member)
    value = loss(rows)
    value.backward()
    gradient = held.grad
    for number, (words, before) in enumerate(zip(contexts.words, contexts.fronts, strict=True)):
        for start in range(0, len(strings), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            own = unit_prompts(tower, Contexts([words], [before]), strings[part])[0]
            own.backward(gradient[number, part])  # type: ignore[index]
    return rows.detach(), float(value.detach())
