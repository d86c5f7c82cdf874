"""Parse the text that clients send: labels, background, numbers.

The library opens a string that looks like a file name, as its users expect. A client's string is never passed on like
that: it becomes a list, a number, or one of a fixed list of names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from densevl.errors import DensevlError, LabelError, OptionError, ProposalError
from densevl.serving.settings import Limits
from densevl.vocabulary import LabelSet
from densevl.vocabulary.background import NEWEST, REST, UNKNOWN, WORD_LISTS
from densevl.vocabulary.parsing import short
from densevl.vocabulary.reading.words import names_file

FAR = 1e6  # pixels
FEW = 200  # characters of an item or a new class
NAMED = {"auto", "none", UNKNOWN, REST, *NEWEST, *WORD_LISTS}


def labels(text: str, limits: Limits) -> LabelSet:
    """Parse labels separated by commas, "dog | puppy" for two words of one class; or JSON: a list, or dict of lists.

    Raises:
        LabelError: If there are none or too many, or some are unusable.
    """
    given: Any = _json(text, "labels", LabelError) if text.lstrip()[:1] in ("[", "{") else text.split(",")
    if isinstance(given, dict):
        given = {name: [words] if isinstance(words, str) else words for name, words in given.items()}
        strings = [word for words in given.values() for word in (words if isinstance(words, list) else [words])]
    else:
        strings = given
    if not all(isinstance(word, str) for word in strings):
        raise LabelError("labels in JSON must be a list of strings, or an object of lists of strings by name")
    _no_more(strings, sum(word.count("|") + 1 for word in strings), "labels and synonyms", LabelError, limits)
    if not any(word.strip() for word in strings):
        raise LabelError('no labels; name at least one, such as "cat, dog"')
    _no_files(strings, "label", LabelError)
    return LabelSet.parse(given)


def background(text: str, limits: Limits) -> Any:
    """Parse a background for the pipelines: one of a fixed list of names, a probability, or words.

    Raises:
        OptionError: If words are unusable or too many.
    """
    text = text.strip()
    if not text or text in NAMED:
        return text or "auto"
    try:
        return float(text)
    except ValueError:
        given = [word for word in text.split(",") if word.strip()]
    _no_more(given, len(given), "words for the background", OptionError, limits)
    _no_files(given, "background", OptionError)
    return given


def share(text: str, what: str) -> float | None:
    """Parse a probability above 0 and below 1; None if left out.

    Raises:
        OptionError: If it is anything else.
    """
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise OptionError(f"{what} is {text[:40]!r}; it must be a probability above 0 and below 1")
    return value


def prompts(text: str, what: str, count: int, limits: Limits) -> list[list[float]]:
    """Parse boxes or points: a JSON list of lists of `count` numbers in pixels; empty if left out.

    Raises:
        ProposalError: If it is anything else, or too many.
    """
    if not text.strip():
        return []
    given = _json(text, what, ProposalError)
    form = "[[x0, y0, x1, y1], ...]" if count == 4 else "[[x, y], ...]"
    if not isinstance(given, list) or not all(isinstance(row, list) and len(row) == count for row in given):
        raise ProposalError(f"{what} must be {form} in pixels, as JSON")
    if not all(type(number) in (int, float) and abs(number) < FAR for row in given for number in row):
        raise ProposalError(f"{what} must be {form} in pixels, as JSON; not all of these are such numbers")
    if len(given) > limits.prompts:
        raise ProposalError(f"{len(given)} {what}; this server takes at most {limits.prompts}")
    return [[float(number) for number in row] for row in given]


def prompt(text: str, what: str, count: int, limits: Limits) -> list[float]:
    """Parse one box or point: a JSON list of `count` numbers in pixels.

    Raises:
        ProposalError: If it is anything else.
    """
    found = prompts(f"[{text}]", what, count, limits)
    if len(found) != 1:
        raise ProposalError(f"{len(found)} {what} where one is expected")
    return found[0]


def edits(text: str, limits: Limits) -> list[tuple[int, int, str]]:
    """Parse corrections: a JSON list of [x, y, name], where the region of one label around that pixel has this name.

    Raises:
        OptionError: If it is anything else, or too many.
    """
    if not text.strip():
        return []
    given = _json(text, "edits", OptionError)
    if not isinstance(given, list) or not all(
        isinstance(row, list) and len(row) == 3 and all(type(n) is int for n in row[:2]) and isinstance(row[2], str)
        for row in given
    ):
        raise OptionError('edits must be [[x, y, "name"], ...], as JSON')
    if any(abs(number) > FAR for row in given for number in row[:2]):
        raise OptionError("an edit is outside of any photo; edits are [x, y, name]")
    _no_more([name for _, _, name in given], len(given), "edits", OptionError, limits)
    return [(x, y, name) for x, y, name in given]


def words(text: str, what: str) -> str:
    """Normalise the space in a few words.

    Raises:
        OptionError: If it is too long.
    """
    tidy = " ".join(text.split())
    if len(tidy) > FEW:
        raise OptionError(f"{what} has {len(tidy):,} characters; this server takes at most {FEW}")
    return tidy


def _no_more(words: Sequence[str], count: int, what: str, error: type[DensevlError], limits: Limits) -> None:
    if count > limits.labels:
        raise error(f"{count} {what}; this server takes at most {limits.labels}")
    if (size := sum(map(len, words))) > limits.characters:
        raise error(f"{what} of {size:,} characters together; this server takes at most {limits.characters:,}")


def _no_files(words: Iterable[str], what: str, error: type[DensevlError]) -> None:
    for word in (part.strip() for entry in words for part in entry.split("|")):
        if names_file(word):
            raise error(
                f"{what} {short(word)!r} looks like a path, but a server opens no files: send the words themselves"
            )


def _json(text: str, what: str, error: type[DensevlError]) -> Any:
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except (ValueError, RecursionError) as reason:
        raise error(f"{what} are not JSON: {reason}") from reason
