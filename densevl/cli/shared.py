"""What all commands share: consoles, names and errors on one line, exit codes.

Exit codes: 0 all done; 1 a check found something bad; 2 one clear line said why not; 3 some images failed, not all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from densevl.errors import DensevlError

FAILED, PARTLY = 2, 3
_Command = TypeVar("_Command", bound=Callable[..., Any])


def stdout() -> Console:
    """Standard output."""
    return Console(highlight=False, soft_wrap=True)


def stderr() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def fail(error: DensevlError) -> None:
    """Print an error on one line."""
    stderr().print(f"[red]error:[/] {escape(' '.join(str(error).split()))}")


def file_name(path: Path) -> str:
    """A file name that stays on one line, ready for rich."""
    return escape(" ".join(path.name.split()))


def one_line_errors(command: _Command) -> _Command:
    """Turn a DensevlError into one line on stderr and exit code 2."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except DensevlError as error:
            fail(error)
            raise typer.Exit(FAILED) from error

    return wrapped  # type: ignore[return-value]
