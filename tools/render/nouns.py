"""The words of the renderer: nouns with their icons and synonyms, articles, and the pairs that training never sees."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BENCHMARK_NOUNS = 20
"""The classes of the rendered benchmark are the first of this number."""
HASHES, HELD_OUT = 10, 0
"""How many values the hash of a pair takes, and the one whose pairs are held out."""


@dataclass(frozen=True)
class Noun:
    """A thing that can be drawn: its name, the icon slugs that show it, and other names for it."""

    name: str
    icons: tuple[str, ...]
    synonyms: tuple[str, ...] = ()


@cache
def all_nouns() -> tuple[Noun, ...]:
    """Return the nouns of nouns.json; the index into this tuple is the noun index everywhere."""
    entries = json.loads(Path(__file__).with_name("nouns.json").read_text(encoding="utf-8"))
    return tuple(Noun(e["name"], tuple(e["icons"]), tuple(e.get("synonyms", ()))) for e in entries)


def with_article(phrase: str) -> str:
    """Return "a dog", "an umbrella"; phrases that already carry an article or are plural stay as they are."""
    first = phrase.split()[0]
    if first in {"a", "an", "the"} or is_plural(phrase):
        return phrase
    sounds_like_consonant = first.startswith(("uni", "use", "euro"))
    return f"{'an' if first[0] in 'aeiou' and not sounds_like_consonant else 'a'} {phrase}"


def is_plural(phrase: str) -> bool:
    """Tell whether the head of a phrase is a plural: "grapes", but not "bus", "glass" or "bunch of grapes"."""
    head = phrase.split(" of ")[0]
    return head.endswith("s") and not head.endswith(("ss", "us"))


def listed(phrases: Sequence[str]) -> str:
    """Return "x", "x and y" or "x, y and z"."""
    *most, last = phrases
    return f"{', '.join(most)} and {last}" if most else last


@cache
def pair_hash(first: str, second: str) -> int:
    """Hash two names (noun and noun, or noun and texture) in either order: 0 to `HASHES` - 1."""
    return zlib.crc32("|".join(sorted((first, second))).encode()) % HASHES


def is_held_out(first: str, second: str) -> bool:
    """Tell whether two names never meet in training."""
    return pair_hash(first, second) == HELD_OUT
