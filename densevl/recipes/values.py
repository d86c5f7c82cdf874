"""Values of parts: checks when they are given, and block numbers for towers of any depth."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from densevl.errors import RecipeError, suggest

DEPTH = 12  # depth of the tower that block numbers refer to


def check(value: object, allowed: tuple[str, ...], what: str) -> None:
    """Raise RecipeError unless `value` is one of `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise RecipeError(f"{what} {value!r} is not one of {', '.join(allowed)}{suggest(str(value), allowed)}")


def positive(value: float, what: str) -> None:
    """Raise RecipeError unless `value` is a finite number above 0."""
    if not number(value) or not value > 0:
        raise RecipeError(f"{what} must be above 0, got {value!r}")


def between(value: float, low: float, high: float, what: str) -> None:
    """Raise RecipeError unless `value` is a number strictly between two others."""
    if not number(value) or not low < value < high:
        raise RecipeError(f"{what} is between {low:g} and {high:g}, got {value!r}")


def at_least(value: int, least: int, what: str) -> None:
    """Raise RecipeError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RecipeError(f"{what} is a whole number of at least {least}, got {value!r}")


def number(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_types(part: Any) -> None:
    """Raise RecipeError if a field of a part does not hold its annotated type."""
    kind: Any = type(part)
    hints = _annotations(kind)
    for entry in fields(part):
        value = getattr(part, entry.name)
        if not _is_a(value, hints.get(entry.name, Any)):
            raise RecipeError(f"{entry.name} of {type(part).__name__} is {value!r}; it is declared as {entry.type}")


@cache
def _annotations(kind: type) -> dict[str, Any]:
    """The types of a class's fields; empty if they are unknown, as for names that only a type checker sees."""
    try:
        return get_type_hints(kind)
    except (NameError, TypeError):
        return {}


def _is_a(value: object, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_a(value, one) for one in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return len(each) == len(value) and all(map(_is_a, value, each))
    if hint is float:
        return number(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or origin is not None or isinstance(value, hint)


def scaled(layers: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Scale block numbers for 12 blocks to a tower of `depth`: (6, 7, 8, 9) of 12 is (3, 4, 5) of 6.

    The last rewired block is included only if it is named as 12.
    """
    if depth == DEPTH:
        return layers
    found = []
    for layer in layers:
        own = depth if layer >= DEPTH else min(max((layer * depth + 6) // DEPTH, min(layer, 1)), depth - 1)
        if own not in found:
            found.append(own)
    return tuple(found)


def block_numbers(blocks: Any) -> tuple[int, ...]:
    """Block numbers as a tuple; raises RecipeError for none, one named twice, or one that is not within 1..12."""
    given = tuple(blocks) if isinstance(blocks, (tuple, list)) else ()
    valid = all(isinstance(block, int) and not isinstance(block, bool) and 1 <= block <= DEPTH for block in given)
    if not given or not valid or len(set(given)) < len(given):
        raise RecipeError(f"blocks are {blocks!r}; give a tuple of different numbers, each within 1..{DEPTH}")
    return given


def listed(blocks: tuple[int, ...]) -> str:
    """(9,) as "block 9", (4, 5, 6) as "blocks 4 to 6", (7, 8, 10) as "blocks 7, 8, 10"."""
    if len(blocks) == 1:
        return f"block {blocks[0]}"
    if len(blocks) > 2 and blocks == tuple(range(blocks[0], blocks[-1] + 1)):
        return f"blocks {blocks[0]} to {blocks[-1]}"
    return f"blocks {', '.join(map(str, blocks))}"
