"""A model's knowledge of words: how each is reached and how far that can be trusted, and the warnings.

All pipelines use `Backbone.doubts`, so the same words get the same warnings everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Way = Literal["text", "name", "table", "kind", "broader", "head", "similarity", "none"]
Trust = Literal["good", "weak", "none"]

LISTED = 30  # words spelled out in one warning
SENTENCES = 12  # reasons spelled out
VERBS = {"weak": "may be wrong about", "none": "does not know"}


@dataclass(frozen=True)
class Reach:
    """How a model reaches a word.

    Attributes:
        word: as given.
        way: "text", by a text tower; "name", the model was trained on it; "table", listed by hand; "kind", it covers
            several names; "broader", it is a kind of a word that is reached; "head", by its last word; "similarity", by
            names with a similar meaning; "none", not at all.
        trust: "good"; "weak", results may be wrong; "none", the model does not know the word.
        why: the reason, if trust is not good; continues "model 'photo' may be wrong about 'x': ".
    """

    word: str
    way: Way = "text"
    trust: Trust = "good"
    why: str = ""

    @property
    def known(self) -> bool:
        """Whether the word itself was taught, rather than inferred."""
        return self.trust != "none" and self.way not in ("broader", "head", "similarity")


def doubts(model: str, reaches: Iterable[Reach]) -> tuple[str, ...]:
    """Warnings about the words that a model does not know, or knows weakly: a sentence per reason."""
    ordered = by_reason(reach for reach in reaches if reach.trust != "good")
    sentences = [
        f"model '{model}' {VERBS[trust]} {listed(words)}: {why}" for (trust, why), words in ordered[:SENTENCES]
    ]
    if rest := [word for _, words in ordered[SENTENCES:] for word in words]:
        sentences.append(f"model '{model}' may be wrong about {listed(rest)} too")
    return tuple(sentences)


def by_reason(reaches: Iterable[Reach]) -> list[tuple[tuple[Trust, str], list[str]]]:
    """Words by (trust, why): unknown words first, then the reasons that most words share."""
    grouped: dict[tuple[Trust, str], list[str]] = {}
    for reach in reaches:
        grouped.setdefault((reach.trust, reach.why), []).append(reach.word)
    return sorted(grouped.items(), key=lambda group: (group[0][0] != "none", -len(group[1])))


def listed(words: Sequence[str]) -> str:
    """Words in quotes, the first few of many."""
    some = ", ".join(f"'{_short(word)}'" for word in words[:LISTED])
    return some + (f" and {len(words) - LISTED} more" if len(words) > LISTED else "")


def _short(word: str) -> str:
    return word if len(word) <= 40 else word[:37] + "..."
