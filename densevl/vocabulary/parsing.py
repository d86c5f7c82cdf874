"""Strings as users give them: tidied, checked, and quoted in errors."""

from __future__ import annotations

from collections.abc import Iterable, Sized

from densevl.errors import DensevlError, LabelError

MAX_CLASSES = 32_767  # label maps are int16
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
        raise error(f"{what} {short(repr(text))} is a {type(text).__name__}; it must be a string")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise error(f"{what} {short(text)!r} holds half a character (a lone surrogate); write it anew")
    tidy = " ".join(text.split())
    if not tidy.strip("| "):
        raise error(f"an empty {what} in the list; remove it (a doubled or trailing comma?)")
    if len(tidy) > MAX_LENGTH and "|" not in tidy:
        raise error(f"{what} '{short(tidy)}' has {len(tidy)} characters; the limit is {MAX_LENGTH}")
    return tidy


def require_few(labels: Sized) -> None:
    """Refuse more labels than a label map holds.

    Raises:
        LabelError: there are more.
    """
    if len(labels) > MAX_CLASSES:
        raise LabelError(f"{len(labels)} labels; a label map holds at most {MAX_CLASSES}")


def short(text: str, limit: int = 40) -> str:
    """A string as errors quote it, at most so many characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
