"""Text longer than a text tower reads: windows of words with overlap, whose embeddings are averaged.

Tokenizers cut silently; here nothing is lost. The number of tokens is estimated without the tokenizer, on the safe
side: a token for every four letters of an ASCII word, for every letter of one that no language has, for every other
mark, and for every byte outside ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate

from densevl.vocabulary.learned_templates import LearnedTemplate

CONTEXT = 77  # CLIP's; a backbone with another one says so by `context_length`
LETTERS = 4  # of an ASCII word in one token
LONGEST_WORD = 24  # letters; in longer ones a token may be a letter
OVERLAP = 4  # neighbouring windows share up to one part in so many
LEAST = 8  # tokens left to the label, however long the template
_WORDS = re.compile(r"[A-Za-z]+|[^\sA-Za-z]")


def tokens_at_most(text: str) -> int:
    """An estimate on the safe side of the tokens of a text, without its start and end."""
    parts = _WORDS.findall(text)
    return sum(len(part.encode()) if _rare(part) else -(-len(part) // LETTERS) for part in parts)


def _rare(part: str) -> bool:
    return len(part) > LONGEST_WORD or not part.isascii()


def budget(context: int, templates: Sequence[str]) -> int:
    """Tokens left to a label in the longest of the templates; two go to start and end."""
    return max(LEAST, context - 2 - max(map(_around, templates)))


def _around(template: str) -> int:
    """Tokens of a template beside the label."""
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
    """A word and its tokens; one that alone is too long (no spaces, or a script without them) is cut by characters."""
    cost = tokens_at_most(word)
    if cost <= room:
        yield word, cost
        return
    size = room if word.isascii() else max(1, room // 4)  # a character has up to four bytes
    for start in range(0, len(word), size):
        part = word[start : start + size]
        yield part, len(part.encode())
