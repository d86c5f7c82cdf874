"""Strings from users: cleaned, checked, and quoted in errors."""

from __future__ import annotations

from collections.abc import Iterable, Sized

from densevl.errors import DensevlError, LabelError

MAX_CLASSES = 32_767  # label maps are int16
MAX_LENGTH = 20_000  # characters of one string: longer than a text tower reads (see `long_text`), shorter than a book


def as_list(value: object, what: str, error: type[DensevlError] = LabelError) -> list[object]:
    """The entries of any iterable.

    Raises:
        LabelError, or the error given: it is not iterable.
    """
    if isinstance(value, Iterable):
        return list(value)
    raise error(f"{what} is a {type(value).__name__}; give a list of strings")


def clean(text: object, what: str, error: type[DensevlError] = LabelError) -> str:
    """Normalise the white space of a string.

    Raises:
        LabelError, or the error given: it is not a string, empty, too long, or has half a character.
    """
    if not isinstance(text, str):
        raise error(f"{what} {short(repr(text))} is a {type(text).__name__}; it must be a string")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise error(f"{what} {short(text)!r} holds half a character (a lone surrogate); write it again")
    tidy = " ".join(text.split())
    if not tidy.strip("| "):
        raise error(f"an empty {what} in the list; remove it (a doubled or trailing comma?)")
    if len(tidy) > MAX_LENGTH and "|" not in tidy:
        raise error(f"{what} '{short(tidy)}' has {len(tidy)} characters; the limit is {MAX_LENGTH}")
    return tidy


def require_few(labels: Sized) -> None:
    """Refuse more labels than a label map can hold.

    Raises:
        LabelError: there are more.
    """
    if len(labels) > MAX_CLASSES:
        raise LabelError(f"{len(labels)} labels; a label map holds at most {MAX_CLASSES}")


def short(text: str, limit: int = 40) -> str:
    """A string shortened for an error message."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
