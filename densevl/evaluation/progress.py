"""The progress line of a run: images, time left, running figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from densevl.evaluation import distributed

Show = Callable[[int, int, float], None]
"""Called with images done, images in all, and the task's running figure such as mIoU (0..1)."""


@contextmanager
def progress(title: str, number: str = "mIoU", *, quiet: bool = False) -> Iterator[Show]:
    """Show a bar on standard error in the block, in the first process only; yields the `show` that `run` takes.

    Args: number: the name of the running figure. quiet: show nothing.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("to go"),
        TimeRemainingColumn(),
        TextColumn(f"{number} {{task.fields[running]}}"),
    )
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, disable=quiet or distributed.rank() > 0, refresh_per_second=4)
    task = bar.add_task(title, total=None, running="")

    def show(done: int, total: int, running: float) -> None:
        bar.start()  # only once there is something to show: a run may be refused
        bar.update(task, completed=done, total=total, running="n/a" if running != running else f"{100 * running:.1f}")

    try:
        yield show
    finally:
        bar.stop()


def note(text: str) -> None:
    """Write a line to standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False, emoji=False)
