"""What a setting of a head may be: its kind and its range, checked and told in one place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from densevl.errors import LONG, OptionError, suggest

MOST = 1e6
"""Of numbers without a limit of their own: beyond it, float32 loses what is added to them."""


@dataclass(frozen=True)
class Rule:
    """A number from `low` to `high`; or true or false; or one of some words.

    Attributes:
        low, high: the limits, both included. above: `low` itself is not. whole: no fractions. optional: None may stand
        for it. flag: true or false. words: the words.
    """

    low: float = 0
    high: float = MOST
    above: bool = False
    whole: bool = False
    optional: bool = False
    flag: bool = False
    words: tuple[str, ...] = ()

    def allows(self, value: Any) -> bool:
        """Whether a value fits."""
        if value is None:
            return self.optional
        if self.flag or self.words:
            return type(value) is bool if self.flag else isinstance(value, str) and value in self.words
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if self.flag or self.words:
            return "true or false" if self.flag else " or ".join(self.words)
        kind = "a whole number" if self.whole else "a number"
        if self.high < MOST:
            return f"{kind} {'above' if self.above else 'from'} {self.low:g} {'up ' * self.above}to {self.high:g}"
        top = "" if self.whole else f", at most {self.high:,.0f}"
        return f"{kind} above {self.low:g}{top}" if self.above else f"{kind} of {self.low:g} or more{top}"


COUNT = Rule(1, whole=True)
SEED = Rule(0, 2**63 - 1, whole=True)


def require(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Check settings.

    Args:
        values: by name, each with a rule.

    Raises:
        OptionError: one that does not fit.
    """
    for name, value in values.items():
        if not rules[name].allows(value):
            told = f"{value:g}" if isinstance(value, float) and not math.isfinite(value) else repr(value)
            told = told if len(told) <= LONG else f"{told[:LONG]}..."
            raise OptionError(f"{name} is {rules[name]}, not {told}")


def require_known(names: Iterable[str], head: str, rules: Mapping[str, Rule]) -> None:
    """Check that a head has settings of such names.

    Raises:
        OptionError: it has not.
    """
    for name in names:
        if name not in rules:
            has = f"it has {', '.join(rules)}" if rules else "it has none"
            raise OptionError(f"head '{head}' has no setting {str(name)[:LONG]!r}{suggest(str(name), rules)}; {has}")
