"""A case from the field: a small input of a kind that people bring, and what they may expect of it.

A case is refused in one clear line, or is right; where densevl has to guess it says so. Nothing is wrong in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from densevl.cli import app
from densevl.errors import DensevlError


@dataclass(frozen=True)
class Ran:
    """A command that has run: its exit code, what it said on stdout, and on stderr (`warnings` are its lines)."""

    code: int
    out: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One input and what is expected of it.

    Attributes:
        id: what the case prevents. kind: one line on the kind of input that it stands for.
        run: the input put to use in a folder of its own; returns a value, a result, or a `Ran`.
        refused: a pattern of the one line in which it is refused.
        warned: a pattern of one of the warnings of what `run` returned; "" for no warnings at all.
        right: whether what `run` returned is right.
    """

    id: str
    kind: str
    run: Callable[[Path], Any]
    refused: str | None = None
    warned: str | None = None
    right: Callable[[Any], bool] | None = None

    def hold(self, folder: Path) -> None:
        """Assert what is expected."""
        assert (self.refused, self.warned, self.right) != (None, None, None), "a case expects something"
        if self.refused is not None:
            self._refuse(folder)
            return
        got = self.run(folder)
        if self.warned is not None:
            found = [text for text in got.warnings if text.strip()]
            if self.warned:
                assert any(re.search(self.warned, text) for text in found), found
            else:
                assert found == []
        assert self.right is None or self.right(got), got

    def _refuse(self, folder: Path) -> None:
        try:
            got = self.run(folder)
        except DensevlError as error:
            code, text = 2, str(error)
        else:
            assert isinstance(got, Ran), f"taken for something: {got!r}"
            code, text = got.code, "\n".join(got.warnings)
        assert code == 2, text
        assert re.search(self.refused or "", text), text
        assert "\n" not in text.strip(), text
        assert len(text) < 1000, text  # five keys of each kind, where weights do not fit


def cases(*table: Case) -> pytest.MarkDecorator:
    """Run a test once for each case."""
    assert len({case.id for case in table}) == len(table), "two cases of one name"
    return pytest.mark.parametrize("case", table, ids=[case.id for case in table])


def run(*arguments: object) -> Ran:
    """Run densevl's command; what is not a `DensevlError` or an exit code is raised."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ran(done.exit_code, done.stdout, tuple(done.stderr.splitlines()))
