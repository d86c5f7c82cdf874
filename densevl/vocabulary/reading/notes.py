"""`Notes`: what was guessed while labels were read, a sentence each with the labels it is about."""

from __future__ import annotations

from densevl.vocabulary.parsing import short

SHOWN = 3  # labels that a sentence names


class Notes:
    """Guesses, each said once however many labels it is about. Attributes: file: that is read, as messages name it."""

    def __init__(self) -> None:
        self.file = ""
        self._about: dict[str, list[str]] = {}

    def say(self, sentence: str, *labels: str) -> None:
        """Note a guess and the labels that it is about."""
        self._about.setdefault(sentence, []).extend(labels)

    @property
    def warnings(self) -> tuple[str, ...]:
        """All that was noted."""
        return tuple(f"{_listed(labels)}{sentence}" for sentence, labels in self._about.items())


def _listed(labels: list[str]) -> str:
    if not labels:
        return ""
    distinct = list(dict.fromkeys(labels))
    more = f" and {len(distinct) - SHOWN} more" if len(distinct) > SHOWN else ""
    return f"label{'s' * (len(distinct) > 1)} {', '.join(repr(short(label)) for label in distinct[:SHOWN])}{more}: "
