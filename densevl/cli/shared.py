"""Shared by all commands: consoles, names and errors on one line, and exit codes.

Exit codes: 0 all done; 1 a check failed; 2 one clear line says what is wrong; 3 some images failed, not all; 4 results
cannot be written there; 130 stopped by Ctrl-C; 141 the reader of the output has closed it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from densevl.errors import DensevlError, OutputError
from densevl.files import REFUSED, json_text, shown

FAILED, PARTLY, UNWRITTEN, STOPPED, UNREAD = 2, 3, 4, 130, 141
# Typer's parser raises this: click's UsageError, from whichever copy of click Typer uses.
_UsageError: Any = typer.BadParameter.__mro__[1]
_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT)
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
_configured: ContextVar[tuple[str, set[str]] | None] = ContextVar("configured", default=None)
"""The file of --config, and the options whose values are in it."""
_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise typer.Exit(unprinted(BrokenPipeError()))


def unprinted(error: OSError) -> int:
    """Report that standard output cannot be written, and return the exit code. Later output is discarded."""
    with contextlib.suppress(OSError, ValueError):  # buffered output would raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return UNREAD  # as the shell reports SIGPIPE
    fail(f"cannot write to standard output: {error.strerror}")
    return UNWRITTEN


def stdout() -> Console:
    """Return a console for standard output."""
    return _Console(highlight=False, soft_wrap=True)


def stderr() -> Console:
    """Return a console for standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(content: dict[str, Any]) -> None:
    """Print one line of JSON."""
    stdout().print(json_text(content, ensure_ascii=False), markup=False)


def fail(error: Exception | str) -> None:
    """Print an error on one line, with control characters escaped."""
    text = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in " ".join(str(error).split()))
    stderr().print(f"[red]error:[/] {escape(text)}")


class _Notes(logging.Handler):
    """Prints log messages, unless --quiet is given."""

    def emit(self, record: logging.LogRecord) -> None:
        if not _quiet.get():
            stderr().print(escape(f"{record.name.partition('.')[2]}: {record.getMessage()}"))


def tell_notes() -> None:
    """Print on standard error how much memory large models need and, in a terminal, what would be better than auto."""
    for name in ("densevl.memory", *(["densevl.offer"] if sys.stderr.isatty() else [])):
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(_Notes())
            logger.setLevel(logging.INFO)


def note(text: str) -> None:
    """Print a note on one line."""
    stderr().print(f"note: {escape(text)}")


def warn(text: str) -> None:
    """Print a warning on one line."""
    stderr().print(f"[yellow]warning:[/] {escape(text)}")


def configured_by(path: str | None) -> None:
    """Start a command whose defaults come from a file, or from none."""
    _configured.set(None if path is None else (path, set()))


def from_config(option: str) -> None:
    """Record that the value of an option comes from the file of --config."""
    if (known := _configured.get()) is not None:
        known[1].add(option)


def where(*options: str) -> str:
    """Return a suffix for a message about options: that one of them is in the file of --config; "" if none is."""
    known = _configured.get()
    return "" if known is None or known[1].isdisjoint(options) else f" (it is set in {shown(known[0])})"


class OneLineGroup(TyperGroup):
    """A group of commands whose usage errors (an unknown option, a wrong type) are one line instead of a box.

    Typer's two completion options are described below the commands, not listed among their options. Brackets in help
    texts are kept as text; typer would read them as markup.
    """

    def __init__(self, *args: Any, **extra: Any) -> None:
        super().__init__(*args, **extra)
        _as_text(self)
        _without_empty_values(self)

    def get_params(self, ctx: Any) -> list[Any]:
        found = super().get_params(ctx)
        for param in found:
            if param.name in ("install_completion", "show_completion"):
                param.hidden = True  # type: ignore[attr-defined]
        return found

    def make_context(self, *args: Any, **extra: Any) -> Any:
        return one_line_errors(super().make_context)(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        return one_line_errors(super().invoke)(ctx)

    def main(self, *args: Any, **extra: Any) -> Any:
        if not extra.get("standalone_mode", True):
            return super().main(*args, **extra)
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False}) or 0
            sys.stdout.flush()
            sys.exit(code)
        except OSError as error:
            if error.filename is not None or error.errno not in _OUTPUT:
                raise
            sys.exit(unprinted(error))
        except typer.Abort:
            sys.exit(1)
        except _UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                where = error.ctx.command_path if error.ctx is not None else "densevl"
                message = error.format_message().rstrip(".")
                name = getattr(getattr(error, "param", None), "name", None)
                if name and error.ctx and "DEFAULT_MAP" in str(error.ctx.get_parameter_source(name)):
                    message += " (from the file of --config)"
                fail(DensevlError(f"{message}; see {where} --help"))
            sys.exit(FAILED)


def _as_text(command: Any) -> None:
    """Escape the help texts of a command, its parameters and its subcommands."""
    for part in (command, *command.params):
        for name in ("help", "short_help", "epilog"):
            if text := getattr(part, name, None):
                setattr(part, name, escape(text))
    for inner in getattr(command, "commands", {}).values():
        _as_text(inner)


def _without_empty_values(command: Any) -> None:
    """Refuse empty strings, which scripts with empty variables pass; as a path one would become "."."""
    for param in command.params:
        param.process_value = functools.partial(_process_value, param, param.process_value)
    for inner in getattr(command, "commands", {}).values():
        _without_empty_values(inner)


def _process_value(param: Any, process: Callable[..., Any], ctx: Any, value: Any) -> Any:
    several = value if isinstance(value, (list, tuple)) else [value]
    blank = any(isinstance(one, str) and not one.strip() for one in several)
    if blank and "COMMANDLINE" in str(ctx.get_parameter_source(param.name)):
        raise typer.BadParameter("it is empty; give a value, or leave it out", ctx, param)
    return process(ctx, value)


def require_name(out: Path) -> None:
    """Refuse an --out that is not a file name, before anything is loaded.

    Raises:
        OutputError: If it is a folder, such as "." or "/".
    """
    if not out.name or out.name == "..":
        raise OutputError(f"--out {shown(out)} is not a file name; give one, such as --out {Path(out, 'head')}")


def file_name(path: str | Path) -> str:
    """Return a file name on one line, escaped for rich."""
    member = str(path).partition("::")[0] if str(path).startswith("tar://") else path
    return escape(" ".join(Path(member).name.split()))


def one_line_errors(command: _Command) -> _Command:
    """Turn a DensevlError into one line on stderr and exit code 2, or 4 if results cannot be written."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        _quiet.set(bool(kwargs.get("quiet")))
        try:
            return command(*args, **kwargs)
        except DensevlError as error:
            fail(error)
            raise typer.Exit(UNWRITTEN if isinstance(error, OutputError) else FAILED) from error
        except OSError as error:
            if error.filename is None and error.errno in _OUTPUT:
                raise typer.Exit(unprinted(error)) from error
            if error.filename is None:
                raise
            full = error.errno in REFUSED  # such as the folder of temporary files
            fail(f"{'cannot write ' * full}{shown(str(error.filename))}: {error.strerror}")
            raise typer.Exit(UNWRITTEN if full else FAILED) from error
        except KeyboardInterrupt as stop:
            fail("; ".join(["stopped", *getattr(stop, "__notes__", ["the same command starts over"])]))
            raise typer.Exit(STOPPED) from stop

    return wrapped  # type: ignore[return-value]
