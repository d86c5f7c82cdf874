"""Strings as users give them: tidied, checked, and quoted in errors; files read with one clear line if that fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from densevl.errors import DensevlError, LabelError

MAX_LENGTH = 20_000  # characters of one string; longer than a text tower reads is fine (see `long_text`), a book is not


def as_list(value: object, what: str, error: type[DensevlError] = LabelError) -> list[object]:
    """The entries of any iterable.

    Raises:
        LabelError, or the error given: not iterable.
    """
    if isinstance(value, Iterable):
        return list(value)
    raise error(f"{what} is a {type(value).__name__}; give a list of strings")


def clean(text: object, what: str, error: type[DensevlError] = LabelError) -> str:
    """A string with its white space made plain.

    Raises:
        LabelError, or the error given: not a string, empty, too long, or holding half a character.
    """
    if not isinstance(text, str):
        raise error(f"{what} {text!r} is a {type(text).__name__}; it must be a string")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise error(f"{what} {short(text)!r} holds half a character (a lone surrogate); write it anew")
    tidy = " ".join(text.split())
    if not tidy.strip("| "):
        raise error(f"an empty {what} in the list; remove it (a doubled or trailing comma?)")
    if len(tidy) > MAX_LENGTH and "|" not in tidy:
        raise error(f"{what} '{short(tidy)}' has {len(tidy)} characters; the limit is {MAX_LENGTH}")
    return tidy


def short(text: str) -> str:
    """A string as errors quote it, at most 40 characters."""
    return text if len(text) <= 40 else text[:37] + "..."


def read(
    path: Path, what: str, lines: Callable[[str], Any] | None = None, error: type[DensevlError] = LabelError
) -> Any:
    """The content of a file: JSON if it is named so or no reader of lines is given.

    Raises:
        LabelError, or the error given: missing, not UTF-8, or malformed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text) if lines is None or path.suffix == ".json" else lines(text)
    except (OSError, ValueError, RecursionError) as reason:
        raise error(f"{what} {path} cannot be read: {reason}") from reason
