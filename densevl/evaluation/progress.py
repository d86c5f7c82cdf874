"""The progress line of a run: images, time to go, running mIoU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from densevl.evaluation import processes
from densevl.evaluation.runner import Show


@contextmanager
def progress(title: str) -> Iterator[Show]:
    """A bar on standard error while the block runs, in the first process only; gives what `run` takes as `show`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("to go"),
        TimeRemainingColumn(),
        TextColumn("mIoU {task.fields[miou]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=processes.rank() > 0, refresh_per_second=4) as bar:
        task = bar.add_task(title, total=None, miou="")

        def show(done: int, total: int, miou: float) -> None:
            bar.update(task, completed=done, total=total, miou=f"{100 * miou:.1f}")

        yield show
