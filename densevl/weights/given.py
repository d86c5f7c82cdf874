"""Facts from the caller: activation and pixel statistics, for one model or for all that are loaded in a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from densevl.errors import OptionError, one_of
from densevl.weights.facts import ACTIVATIONS, CALLER, Fact, Facts, activations

_GIVEN: ContextVar[Facts] = ContextVar("given", default={})  # noqa: B039


def given(activation: str | None, mean: Sequence[float] | None, std: Sequence[float] | None) -> dict[str, Fact]:
    """The caller's facts.

    Raises:
        OptionError: there is no such activation, or it is not three numbers that pixels can have.
    """
    found = {}
    if activation is not None:
        one_of(activation, ACTIVATIONS, "activation", OptionError)
        found = activations(activation, CALLER)
    for name, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        numbers = tuple(values) if isinstance(values, list | tuple) else ()
        least = 0.0 if name == "mean" else 1e-6
        if len(numbers) != 3 or not all(isinstance(x, int | float) and least <= x <= 1 for x in numbers):
            span = "of 0 to 1" if name == "mean" else "above 0 and up to 1"
            raise OptionError(f"{name} is {str(values)[:60]}; it must be three numbers {span}, for red, green and blue")
        found[name] = Fact(tuple(map(float, numbers)), CALLER)
    return found


@contextmanager
def loaded_as(
    activation: str | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Iterator[None]:
    """Load models in this block as with `load_backbone(activation=, mean=, std=)`.

    Raises:
        OptionError: see `given`.
    """
    token = _GIVEN.set(all_given(activation, mean, std))
    try:
        yield
    finally:
        _GIVEN.reset(token)


def given_in(reading: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `loaded_as` that a caller gave for a model with this `Backbone.reading`."""
    values = {name: value[0] for name, value in reading.items() if isinstance(value, list) and value[1] == CALLER}
    found = {"activation": values.get("image_activation"), "mean": values.get("mean"), "std": values.get("std")}
    return {name: value for name, value in found.items() if value is not None}


def all_given(activation: str | None, mean: Sequence[float] | None, std: Sequence[float] | None) -> dict[str, Fact]:
    """The caller's facts, including those of an enclosing `loaded_as`; see `given`."""
    return {**_GIVEN.get(), **given(activation, mean, std)}
