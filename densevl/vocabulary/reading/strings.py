"""Several labels in one string."""

from __future__ import annotations

import re

from densevl.errors import LabelError
from densevl.vocabulary.parsing import short
from densevl.vocabulary.reading.notes import Notes

_WIDE = re.compile("[\uff0c\u3001\uff1b\u060c]")
_DOTS = re.compile(r"\s+\.\s+|\s+\.$|(?<=\w)\.\s+(?=\w)")
_SHORT = re.compile(
    r"\b(?:\w|st|ste|mt|ft|no|nr|mr|mrs|ms|dr|jr|sr|vs|sp|spp|ssp|subsp|var|cf|etc|prof|inc|co|ltd|bros|approx|max|min"
    r"|fig|vol|ave|blvd|rd)\.(?:\s|$)|\.\w+\.",
    re.IGNORECASE,
)
"""Words that end in a full stop without ending a sentence."""


def split(text: str, notes: Notes) -> list[str]:
    """Split a string into labels at commas, or at other tools' separators, which is noted.

    Raises:
        LabelError: there are two separators, one of which may mean synonyms.
    """
    parts: list[str]
    dots = _DOTS.split(text.strip().rstrip("."))
    if ";" in text:
        if "," in text:
            raise LabelError(
                f'labels {short(text)!r} hold both "," and ";": write commas between classes and "|" between words for '
                'one class, "cat|kitten,dog"'
            )
        parts, mark = text.rstrip("; ").split(";"), '";"'
    elif _WIDE.search(text):
        parts, mark = _WIDE.sub(",", text).split(","), "the commas of another script"
    elif "\t" in text.strip() and "," not in text:
        parts, mark = text.strip().split("\t"), "tabs"
    elif re.search(r"\s\.\s|\s\.$", text.strip()) or _is_dotted(text, dots):
        if "," in text:
            raise LabelError(f'labels {short(text)!r} hold both "," and " . ": write commas between classes')
        parts, mark = dots, '" . "'
    else:
        return text.split(",")
    if len(parts) > 1:
        first = ", ".join(part.strip() for part in parts[:2])
        notes.say(f"{len(parts)} labels are read, separated by {mark}; densevl writes commas: {first}")
    return parts


def is_abbreviated(text: str) -> bool:
    """Whether full stops in a text are those of abbreviations, "St. Bernard"."""
    return _SHORT.search(text) is not None


def _is_dotted(text: str, parts: list[str]) -> bool:
    """Whether this is "a cat. a dog.", GroundingDINO's form, rather than a sentence or an abbreviation."""
    return (
        len(parts) > 1
        and "," not in text
        and all(len(part.split()) <= 4 for part in parts)
        and not is_abbreviated(text)
    )
