"""Classes in data: the JSON and YAML forms of other projects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from densevl.errors import LabelError
from densevl.vocabulary.parsing import as_list, short
from densevl.vocabulary.reading.notes import Notes

NESTED = ("id2label", "label2id", "categories", "names", "classes", "class_names")
"""Fields of Hugging Face's, COCO's, Ultralytics' and other files that hold the classes."""
_NUMBER = re.compile(r"\d{1,9}")
_ID = re.compile(r"\d+|n\d{8}|/[mg]/\w+")
Content = list[Any] | Mapping[Any, Any]


def classes_of(data: Any, notes: Notes, what: str) -> Content:
    """The classes in data: a list of them, or a dict of name to words.

    Args:
        data: one of those; or a dict of numbers to names, as Hugging Face's id2label, of names to numbers, or with a
            field of `NESTED`; or a list of dicts with a name, as COCO's categories. what: its name in messages.

    Raises:
        LabelError: it is anything else.
    """
    if isinstance(data, Mapping):
        inner = next((data[key] for key in NESTED if _holds(data, key)), None)
        if inner is not None:
            return classes_of(inner, notes, what)
        if data and all(_is_number(key) for key in data):
            return _by_number([(int(key), value) for key, value in data.items()], notes, what)
        if data and all(isinstance(value, int) and not isinstance(value, bool) for value in data.values()):
            return _by_number([(number, name) for name, number in data.items()], notes, what)
        return data
    if isinstance(data, (str, bytes)):
        raise LabelError(f"{what} holds a {type(data).__name__}; it needs a list of labels or a dict")
    entries = as_list(data, what)
    if entries and all(isinstance(entry, Mapping) for entry in entries):
        rows: list[Any] = entries
        if all(_is_number(row.get("id")) for row in rows):
            return _by_number([(int(row["id"]), row) for row in rows], notes, what)
        return [_name(row, what) for row in rows]
    if any(isinstance(entry, bool) for entry in entries):
        raise LabelError(f"{what}: a label is true or false, as YAML reads yes, no, on and off; put the word in quotes")
    return entries


def _holds(data: Mapping[Any, Any], key: str) -> bool:
    """Whether a field holds classes; {"names": "x"} is a class of that name."""
    value = data.get(key)
    return isinstance(value, (Mapping, list, tuple)) and len(value) > 0


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value) is not None
    return isinstance(value, int) and not isinstance(value, bool)


def _by_number(pairs: Sequence[tuple[int, Any]], notes: Notes, what: str) -> list[str]:
    """Names in the order of their numbers."""
    ordered = sorted(pairs, key=lambda pair: pair[0])
    twice = next((a for (a, _), (b, _) in pairwise(ordered) if a == b), None)
    if twice is not None:
        raise LabelError(f"{what} give two labels the number {twice}; numbers of classes differ")
    in_order(ordered, notes)
    return [_name(value, what) for _, value in ordered]


def in_order(numbered: Sequence[tuple[int, Any]], notes: Notes) -> None:
    """Warn if numbers in order do not simply count from 0 or 1, because results count their classes from 0."""
    numbers = [number for number, _ in numbered]
    if numbers not in (list(range(len(numbers))), list(range(1, len(numbers) + 1))):
        notes.say(
            f"the labels are numbered {numbers[0]} to {numbers[-1]} with gaps; results number them from 0, in "
            "that order"
        )


def _name(value: Any, what: str) -> str:
    """The name in a value: a string, a dict with a name, or a list in Keras' form, ["n01440764", "tench"]."""
    if isinstance(value, Mapping):
        value = value.get("name")
    if isinstance(value, (list, tuple)) and value and all(isinstance(part, str) for part in value):
        return " | ".join([part for part in value if _ID.fullmatch(part) is None] or value)
    if not isinstance(value, str):
        raise LabelError(f"{what}: {short(repr(value))} stands where the name of a class is due; it must be a string")
    return value
