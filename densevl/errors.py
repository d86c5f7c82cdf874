"""Every error densevl raises on purpose: one line that names the thing, the limit and the way out.

Catch `DensevlError` to catch them all. The command line prints the message and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DensevlError(Exception):
    """Base of all errors a user can cause or mend."""


class ImageError(DensevlError):
    """An image cannot be read, is too large, or is not an image."""


class OptionError(DensevlError):
    """A setting has a value that it cannot have, or does not go with another."""


class LabelError(DensevlError):
    """The labels are empty, doubled or malformed."""


class RecipeError(DensevlError):
    """A recipe is unknown, contradicts itself, or does not fit the backbone."""


class ProtocolError(DensevlError):
    """A resize or window setting is impossible, such as a stride that leaves gaps."""


class ModelError(DensevlError):
    """A model name is unknown, its files are not at hand, or it lacks what is asked of it."""


class PrecisionError(ModelError):
    """A model runs in float32 only, and another precision was asked for by name."""


class WeightsError(ModelError):
    """A weights file is damaged, is something else, or belongs to another architecture."""


class ProposalError(DensevlError):
    """Masks, boxes, points, RLE or label maps that do not fit their image, or a proposer's setting out of range."""


class OutputError(DensevlError):
    """A result cannot be written."""


class DatasetError(DensevlError):
    """A benchmark is missing, incomplete, or holds labels that its rules do not know."""


class EvaluationError(DensevlError):
    """An evaluation contradicts itself, or its saved state belongs to another one."""


class MissingExtraError(DensevlError):
    """A capability needs a package that is not installed; the message holds the install line."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': pip install \"densevl[{extra}]\"")
        self._parts = (package, extra, purpose)

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), self._parts  # else worker pools cannot send it back


LONG = 100  # characters of a wrong value that are told, and compared with right ones


def suggest(given: str, allowed: Iterable[str]) -> str:
    """Return " (closest: a, b, c)" for a mistyped name, or "" when nothing is close."""
    near = difflib.get_close_matches(given[:LONG], list(allowed), n=3, cutoff=0.5)
    return f" (closest: {', '.join(near)})" if near else ""


def one_of(given: object, allowed: Iterable[str], what: str, error: type[DensevlError]) -> None:
    """Raise the error unless a value is one of those allowed."""
    allowed = list(allowed)
    if given not in allowed:
        told = repr(given)
        told = told if len(told) <= LONG else f"{told[:LONG]}..."
        raise error(f"{what} is {told}{suggest(str(given), allowed)}; it is one of {', '.join(allowed)}")
