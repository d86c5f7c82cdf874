"""All errors densevl raises on purpose. Each message is one line that names the thing, the limit and the way out.

Catch `DensevlError` to catch them all. The command line prints the message and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DensevlError(Exception):
    """Base of all errors that a user can cause or fix."""


class ImageError(DensevlError):
    """An image cannot be read, is too large, or is not an image."""


class OptionError(DensevlError):
    """A setting has a value it does not accept, or conflicts with another setting."""


class LabelError(DensevlError):
    """The labels are empty, duplicated or malformed."""


class RecipeError(DensevlError):
    """A recipe is unknown, is inconsistent, or does not fit the backbone."""


class ProtocolError(DensevlError):
    """A resize or window setting is impossible, such as a stride that leaves gaps."""


class ModelError(DensevlError):
    """A model name is unknown, the model's files are not available, or it lacks something a task needs."""


class PrecisionError(ModelError):
    """A model runs in float32 only, and another precision was requested by name."""


class WeightsError(ModelError):
    """A weights file is damaged, is not a weights file, or belongs to another architecture."""


class ProposalError(DensevlError):
    """Masks, boxes, points, RLE or label maps that do not fit their image, or a proposer's setting out of range."""


class OutputError(DensevlError):
    """A result cannot be written."""


class DatasetError(DensevlError):
    """A benchmark is missing or incomplete, or contains labels that its rules do not define."""


class EvaluationError(DensevlError):
    """An evaluation is inconsistent, or its saved state belongs to another one."""


class MissingExtraError(DensevlError):
    """A feature needs a package that is not installed. The message gives the install command."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': pip install \"densevl[{extra}]\"")
        self._parts = (package, extra, purpose)

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), self._parts  # without this, worker pools cannot send the error back


LONG = 100  # characters of a wrong value that are shown, and compared with the right ones


def suggest(given: str, allowed: Iterable[str]) -> str:
    """Return " (closest: a, b, c)" for a mistyped name, or "" when nothing is close."""
    near = difflib.get_close_matches(given[:LONG], list(allowed), n=3, cutoff=0.5)
    return f" (closest: {', '.join(near)})" if near else ""


def one_of(given: object, allowed: Iterable[str], what: str, error: type[DensevlError]) -> None:
    """Raise an error unless a value is one of those allowed."""
    allowed = list(allowed)
    if given not in allowed:
        text = repr(given)
        text = text if len(text) <= LONG else f"{text[:LONG]}..."
        raise error(f"{what} is {text}{suggest(str(given), allowed)}; it is one of {', '.join(allowed)}")
