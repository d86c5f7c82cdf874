"""Text longer than a text tower reads: overlapping windows of words, whose embeddings are averaged.

Tokenizers cut silently; here nothing is lost. The number of tokens is estimated without the tokenizer, erring upwards:
a token for every four letters of an ASCII word, for every letter of an implausible word, for every other mark, and for
every byte outside ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate

from densevl.vocabulary.learned_templates import LearnedTemplate

CONTEXT = 77  # CLIP's; a backbone with another one sets `context_length`
LETTERS = 4  # of an ASCII word per token
LONGEST_WORD = 24  # letters; in longer words each letter may be a token
OVERLAP = 4  # neighbouring windows share up to one part in four
LEAST = 8  # tokens reserved for the label, however long the template
_WORDS = re.compile(r"[A-Za-z]+|[^\sA-Za-z]")


def tokens_at_most(text: str) -> int:
    """Estimate the tokens of a text, without its start and end, erring upwards."""
    parts = _WORDS.findall(text)
    return sum(len(part.encode()) if _rare(part) else -(-len(part) // LETTERS) for part in parts)


def _rare(part: str) -> bool:
    return len(part) > LONGEST_WORD or not part.isascii()


def budget(context: int, templates: Sequence[str]) -> int:
    """Tokens left for a label in the longest of the templates; start and end take two."""
    return max(LEAST, context - 2 - max(map(_around, templates)))


def _around(template: str) -> int:
    """Tokens of a template without the label."""
    if isinstance(template, LearnedTemplate):
        return len(template.words)
    return tokens_at_most(template.replace("{}", ""))


def windows(text: str, room: int) -> list[str]:
    """Cut a text into windows of at most `room` estimated tokens, overlapping by a quarter; [text] where it fits."""
    if tokens_at_most(text) <= room:
        return [text]
    priced = [pair for word in text.split() for pair in _parts(word, room)]
    words, costs = [word for word, _ in priced], [cost for _, cost in priced]
    found, start = [], 0
    while True:
        end = start + max(1, sum(total <= room for total in accumulate(costs[start : start + room])))
        found.append(" ".join(words[start:end]))
        if end >= len(words):
            return found
        shared = sum(total <= room // OVERLAP for total in accumulate(reversed(costs[start + 1 : end])))
        start = end - shared


def _parts(word: str, room: int) -> Iterator[tuple[str, int]]:
    """A word and its tokens; a word that is too long by itself (without spaces) is cut into pieces."""
    cost = tokens_at_most(word)
    if cost <= room:
        yield word, cost
        return
    size = room if word.isascii() else max(1, room // 4)  # a character has up to four bytes
    for start in range(0, len(word), size):
        part = word[start : start + size]
        yield part, len(part.encode())
