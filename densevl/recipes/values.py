"""Values that parts hold: checked when they are given, and block numbers that fit towers of any depth."""

from __future__ import annotations

from typing import Any

from densevl.errors import RecipeError, suggest


def check(value: object, allowed: tuple[str, ...], what: str) -> None:
    """Raise RecipeError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise RecipeError(f"{what} {value!r} is not one of {', '.join(allowed)}{suggest(str(value), allowed)}")


def positive(value: float, what: str) -> None:
    """Raise RecipeError unless `value` is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise RecipeError(f"{what} must be above 0, got {value!r}")


def scaled(layers: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Block numbers given for 12 blocks, in a tower of `depth`: (6, 7, 8, 9) of 12 is (3, 4, 5) of 6.

    The last rewired block is never among them unless it is named as 12.
    """
    if depth == 12:
        return layers
    found = []
    for layer in layers:
        number = depth if layer >= 12 else min(max((layer * depth + 6) // 12, min(layer, 1)), depth - 1)
        if number not in found:
            found.append(number)
    return tuple(found)


def block_numbers(blocks: Any) -> tuple[int, ...]:
    """Block numbers as a tuple; raises RecipeError for none, or one that is not a whole number from 1."""
    given = tuple(blocks)
    if not given or not all(isinstance(number, int) and number >= 1 for number in given):
        raise RecipeError(f"blocks are {given}; give at least one number, each counted from 1")
    return given


def listed(blocks: tuple[int, ...]) -> str:
    """(9,) as "block 9", (4, 5, 6) as "blocks 4 to 6", (7, 8, 10) as "blocks 7, 8, 10"."""
    if len(blocks) == 1:
        return f"block {blocks[0]}"
    if len(blocks) > 2 and blocks == tuple(range(blocks[0], blocks[-1] + 1)):
        return f"blocks {blocks[0]} to {blocks[-1]}"
    return f"blocks {', '.join(map(str, blocks))}"
