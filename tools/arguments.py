"""Arguments shared by several tools: numbers within a range, new files and folders, and one line for a mistake."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch

from densevl.errors import DensevlError, ImageError, OptionError, OutputError
from densevl.files import shown
from densevl.images import read_image

Made = TypeVar("Made")

_passed_over: set[str] = set()


class Parser(argparse.ArgumentParser):
    """A parser that raises `OptionError` for wrong arguments, in one line and without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the message."""
        raise OptionError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def number(
    kind: type[int] | type[float],
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
) -> Callable[[str], float]:
    """Return the `type` of an argument that is a finite number, with bounds: at least, at most, above, below."""
    limits = {"at least": least, "above": above, "at most": most, "below": below}
    told = " and ".join(f"{word} {limit}" for word, limit in limits.items() if math.isfinite(limit))
    wanted = f"{'a whole' if kind is int else 'a'} number {told}".strip()

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        # Comparisons, as an int may be too large for math.isfinite.
        if not (abs(value) < math.inf and least <= value <= most and above < value < below):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {wanted}")
        return value

    return read


COUNT = number(int, 1)
SEED = number(int, 0, 2**63 - 1)
THREADS = number(int, 1, 1024)
SIDE = number(int, 16, 2048)
"""Options of rendered scenes, in pixels."""
RATE = number(float, above=0, most=1)
"""Options of training."""


def option(default: float, about: str, kind: Callable[[str], float]) -> Any:
    """Declare a field of a dataclass that `add_options` turns into an option."""
    return field(default=default, metadata={"help": f"{about} (default %(default)s)", "type": kind})


def add_options(parser: argparse.ArgumentParser, plan: type) -> None:
    """Add an option for every field of a dataclass, each made by `option`."""
    for own in fields(plan):
        parser.add_argument(f"--{own.name.replace('_', '-')}", default=own.default, **own.metadata)


def chosen(plan: type[Made], given: argparse.Namespace) -> Made:
    """Build the dataclass from the options that `add_options` added."""
    return plan(**{own.name: getattr(given, own.name) for own in fields(plan)})  # type: ignore[arg-type]


def add_scenes(commands: Any, about: str, count: int, least: int, seed: int) -> None:
    """Add the command that renders scenes."""
    made = commands.add_parser("scenes", help=about)
    made.add_argument("--out", type=Path, required=True, help="a new folder")
    made.add_argument("--count", type=number(int, least), default=count, help="(default %(default)s)")
    made.add_argument("--size", type=SIDE, default=96, help="side in pixels (default %(default)s)")
    made.add_argument("--seed", type=SEED, default=seed, help="(default %(default)s)")


def new_file(path: Path, suffix: str = ".safetensors") -> None:
    """Refuse a file that exists, has another extension or cannot be written; call before long work.

    Raises:
        OutputError: If it is refused.
    """
    if path.suffix != suffix:
        raise OutputError(f"{shown(path)} is no {suffix}; name a new {suffix} file")
    if os.path.lexists(path):
        raise OutputError(f"{shown(path)} is there already; name a new {suffix} file")
    writable(path)


def new_folder(path: Path) -> None:
    """Refuse a folder that is not empty or cannot be made.

    Raises:
        OutputError: If it is refused.
    """
    writable(path)
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise OutputError(f"{shown(path)} is there already and not empty; name a new folder")


def writable(path: Path) -> None:
    """Refuse a place where no file or folder can be made.

    Raises:
        OutputError: If it is refused.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            path.lstat()  # fails below a file, and for a name that no system takes
        near = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
        with tempfile.TemporaryFile(dir=near):
            pass
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {shown(path)}: {getattr(error, 'strerror', None) or error}") from error


def read_or_skip(path: Path) -> np.ndarray | None:
    """Read a picture as uint8 RGB (H, W, 3). If it is unreadable, return None, warn, and set the exit status to 3."""
    try:
        return read_image(path)
    except ImageError as error:
        if (message := f"passed over: {error}") not in _passed_over:  # once, however many epochs read it
            _passed_over.add(message)
            logging.getLogger(__name__).warning(message)
        return None


def still_finite(step: int, loss: float, tensors: Iterable[torch.Tensor] = ()) -> None:
    """Refuse to continue a training run that has diverged.

    Raises:
        DensevlError: If the loss or one of the tensors is not finite.
    """
    whole = all(bool(tensor.isfinite().all()) for tensor in tensors)
    if not whole or not math.isfinite(loss):
        told = "the weights are not finite" if math.isfinite(loss) else f"the loss is {loss}"
        raise DensevlError(f"the training diverged: {told} at step {step}; take a lower rate")


def status(work: Callable[[], None]) -> int:
    """Run a command and return its exit status.

    It is 2 for a user's mistake, which is printed in one line, 3 if pictures were passed over, and 0 otherwise.
    """
    _passed_over.clear()
    try:
        work()
    except DensevlError as error:
        print(error, file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _short(error):
            raise
        print("there is not enough memory for this; take a smaller width, side or batch", file=sys.stderr)
        return 2
    return 3 if _passed_over else 0


def _short(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
