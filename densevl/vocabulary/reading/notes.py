"""`Notes`: guesses made while reading labels, a sentence each with the labels it concerns."""

from __future__ import annotations

from densevl.vocabulary.parsing import short

SHOWN = 3  # labels named in a sentence


class Notes:
    """Guesses, each reported once for all labels it concerns. Attributes: file: the file's name in messages."""

    def __init__(self) -> None:
        self.file = ""
        self._about: dict[str, list[str]] = {}

    def say(self, sentence: str, *labels: str) -> None:
        """Note a guess and the labels it concerns."""
        self._about.setdefault(sentence, []).extend(labels)

    @property
    def warnings(self) -> tuple[str, ...]:
        """All notes."""
        return tuple(f"{_listed(labels)}{sentence}" for sentence, labels in self._about.items())


def _listed(labels: list[str]) -> str:
    if not labels:
        return ""
    distinct = list(dict.fromkeys(labels))
    more = f" and {len(distinct) - SHOWN} more" if len(distinct) > SHOWN else ""
    return f"label{'s' * (len(distinct) > 1)} {', '.join(repr(short(label)) for label in distinct[:SHOWN])}{more}: "
