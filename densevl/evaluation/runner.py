"""An evaluation from start to end: open, load, predict, count, save, report; in one process or several.

Each image is counted once, by one of the processes. Integer counts make the result independent of order, of the number
of processes and of how often a run was killed. `tasks` decides what is counted, `checkpoint` where a run resumes.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from densevl.errors import DensevlError, EvaluationError
from densevl.evaluation import distributed
from densevl.evaluation.benchmarks.base import Dataset
from densevl.evaluation.checkpoint import STATE, Checkpoint, saved
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.outcome import Outcome, identity_of
from densevl.evaluation.progress import Show, note, progress
from densevl.evaluation.report import results as report
from densevl.evaluation.tasks.base import Task
from densevl.evaluation.tasks.table import task_of
from densevl.files import Hold, atomic_write, guard, shown

_LOG = logging.getLogger(__name__)
AHEAD, READERS = 4, max(1, min(4, os.cpu_count() or 1))
"""Images that a thread reads in one go while others are predicted, and the number of threads. They are read in one go
because every hand-over between threads costs the model's thread time, which matters for small images and models."""
SAVE_EVERY = 10.0
"""Seconds between two saves."""
SHOW_EVERY = 0.2
"""Seconds between updates of the running figure."""


def evaluate(
    experiment: Experiment,
    work_dir: str | Path,
    *,
    fresh: bool = False,
    dump: bool = False,
    save_every: float = SAVE_EVERY,
    overwrite: bool = False,
    quiet: bool = False,
    tell: Callable[[str], None] = _LOG.warning,
) -> tuple[Outcome, list[Path]]:
    """Evaluate and report.

    Args:
        experiment: what to do.
        work_dir: gets state/ (counts, for resuming after a kill), the report, and predictions/ with `dump`.
        fresh: discard what earlier runs counted.
        dump: keep every prediction: label maps as 16-bit PNG (class index, 65535 for nothing), in the tree of the
            images; instances as COCO results; panoptic maps as COCO's PNG and JSON; anomaly maps as .npy.
        save_every: seconds between two saves of the counts.
        overwrite: replace other files that have the names of the report's, or lie in predictions/.
        quiet: show no progress. tell: called with each warning, once.

    Returns:
        The outcome, and the report's files (in the first process; none in others).

    Raises:
        DensevlError: as `run` and `report.write`.
    """
    if not isinstance(work_dir, str | os.PathLike):
        raise EvaluationError(f"the work folder is a {type(work_dir).__name__}; give a path")
    folder = Path(work_dir)
    predictions = folder / "predictions" if dump else None
    if distributed.rank() == 0:
        report.claim(folder, *report.FILES, overwrite=overwrite)
        counted = saved(folder / STATE)
        if predictions is not None and not counted:
            guard([path for path in predictions.rglob("*") if path.is_file()], overwrite=overwrite)
        if predictions is not None and counted and not (fresh or predictions.exists()):
            raise EvaluationError(
                f"{shown(folder)} counts images whose predictions were not kept; predict them again (--fresh)"
            )
    task = task_of(experiment)
    shown_warnings: set[str] = set()

    def say(warnings: Iterable[str]) -> None:
        for warning in dict.fromkeys(warnings) if distributed.rank() == 0 else ():
            if warning not in shown_warnings:
                shown_warnings.add(warning)
                tell(warning)

    seen = task.look
    if distributed.rank() == 0 and not quiet:
        note(f"{experiment.dataset}: {seen.text}")
    say((*seen.warnings, *seen.of_sample))
    predictor = task.predictor(device=distributed.device())
    used = predictor.facts()
    if distributed.rank() == 0 and not quiet and "about" in used:
        note(f"model {used['model']}: {used['about']}")
    if distributed.rank() == 0 and not quiet and (rule := getattr(predictor, "left_out", "")):
        note(
            f"background: none, since '{experiment.dataset}' has no background class; densevl segment uses the model's "
            f"own by default: --background {shown(rule)}"
        )
    say(used.get("warnings", ()))
    hold = Hold(folder / STATE)
    if distributed.rank() == 0:
        hold.take()
    if fresh and distributed.rank() == 0:  # only once the dataset and the model are loaded
        for path in (*saved(folder / STATE), *_predictions(predictions)):
            path.unlink()
    distributed.barrier()
    title = f"{experiment.recipe or used['model']} on {experiment.dataset}"
    with hold, progress(title, task.running, quiet=quiet) as show:
        outcome = count(task, predictor, folder, show=show, save_every=save_every, dump=predictions)
    say(outcome.warnings if distributed.rank() == 0 else ())
    files = report.write(outcome, folder, predictor) if distributed.rank() == 0 else []
    distributed.barrier()
    return outcome, files


def _predictions(folder: Path | None) -> list[Path]:
    """Predictions that an earlier run dumped."""
    kinds = {".png", ".json", ".npy"}
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix in kinds] if folder else []


def run(
    experiment: Experiment,
    work_dir: str | Path | None = None,
    *,
    dataset: Dataset | None = None,
    predictor: Any = None,
    **how: Any,
) -> Outcome:
    """Evaluate without a report.

    Args:
        experiment: what to do. work_dir: where counts are kept for resuming after a kill; None keeps none.
        dataset, predictor: opened already; None opens and loads what the experiment says.
        how: as `count` takes it.

    Raises:
        DensevlError: as `count`, and as the loading of dataset and model.
    """
    task = task_of(experiment, dataset)
    for warning in (*task.look.warnings, *task.look.of_sample):
        _LOG.warning(warning)
    return count(task, predictor or task.predictor(device=distributed.device()), work_dir, **how)


def count(
    task: Task,
    predictor: Any,
    work_dir: str | Path | None = None,
    *,
    show: Show | None = None,
    save_every: float = SAVE_EVERY,
    dump: str | Path | None = None,
) -> Outcome:
    """Predict and count every image that no earlier run has counted.

    Args:
        work_dir: where counts are kept for resuming after a kill; None keeps none.
        show: called after every image of this process.
        save_every: seconds between two saves of the counts; 0 saves after every image.
        dump: a folder for every prediction, in the task's format.

    Raises:
        DatasetError: a file of the dataset is missing or wrong.
        EvaluationError: there are no images, the work folder belongs to another experiment, or several processes have
            no work folder although the task keeps something.
        DensevlError: as the model.
    """
    dataset = task.dataset
    if isinstance(save_every, bool) or not isinstance(save_every, int | float) or not save_every >= 0:
        raise EvaluationError(f"save_every is {save_every!r}: give seconds, 0 or more")
    if len(dataset) == 0:
        raise EvaluationError(f"'{dataset.name}' has no images at {shown(dataset.root)}: there is nothing to evaluate")
    if task.keeps and work_dir is None and distributed.world() > 1:
        raise EvaluationError("several processes exchange files: name a work folder")
    used = predictor.facts()
    identity, files = identity_of(task, used), dataset.digests()
    folder = Path(work_dir) / STATE if work_dir is not None else None
    state = Checkpoint(folder, identity, [item.key for item in dataset.items], files, task.zeros())
    mine = np.flatnonzero(~state.before.done)[distributed.rank() :: distributed.world()].tolist()
    running, last_shown = 0.0, float("-inf")
    started = saved = time.perf_counter()
    clock = predictor.clock
    clock.seconds.clear()
    if show is not None and not mine:
        show(len(dataset), len(dataset), task.so_far(state.so_far()))
    try:
        for number, (index, sample) in enumerate(_ahead(dataset, mine, clock.add), start=1):
            found = task.predict(predictor, sample)
            since = time.perf_counter()
            counted = task.count(index, sample, found)
            state.add(index, counted.counts, counted.ranking, counted.kept)
            if dump is not None:
                for name, content in task.dump(index, sample, found).items():
                    atomic_write(Path(dump) / name, content)
            if show is not None:
                if number == len(mine) or since - last_shown >= SHOW_EVERY:
                    running, last_shown = task.so_far(state.so_far()), since
                show(number, len(mine), running)
            if folder is not None and time.perf_counter() - saved >= save_every:
                state.save()
                saved = time.perf_counter()
            clock.add("count", since)
    except KeyboardInterrupt as stop:
        done = int((state.before.done | state.now.done).sum())
        kept_there = "the same command goes on from here" if folder is not None else "nothing of it is kept"
        stop.add_note(f"{done:,} of {len(dataset):,} images are counted; {kept_there}")
        raise
    finally:
        state.save()
    seconds = time.perf_counter() - started
    total, images = state.total()
    kept = state.kept() if task.keeps and distributed.rank() == 0 else {}
    return Outcome(
        task,
        identity,
        files,
        total.counts,
        total.ranking,
        seconds,
        dict(clock.seconds),
        images,
        int(state.before.done.sum()),
        used,
        kept,
    )


def _ahead(dataset: Dataset, indices: Sequence[int], book: Callable[[str, float], float]) -> Iterator[tuple[int, Any]]:
    """Samples in order, read ahead by threads; the time spent waiting for them is booked as "read"."""
    parts = [indices[start : start + AHEAD] for start in range(0, len(indices), AHEAD)]
    with ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="densevl-read") as pool:
        waiting: deque[Future[list[tuple[int, Any]]]] = deque()
        try:
            for part in parts:
                waiting.append(pool.submit(_read, dataset, part))
                if len(waiting) > READERS:
                    yield from _next(waiting, book)
            while waiting:
                yield from _next(waiting, book)
        finally:
            for future in waiting:
                future.cancel()


def _read(dataset: Dataset, indices: Sequence[int]) -> list[tuple[int, Any]]:
    """Samples; the first that cannot be read is its error, raised when its turn comes."""
    found: list[tuple[int, Any]] = []
    for index in indices:
        try:
            found.append((index, dataset[index]))
        except DensevlError as error:
            return [*found, (index, error)]
    return found


def _next(
    waiting: deque[Future[list[tuple[int, Any]]]], book: Callable[[str, float], float]
) -> Iterator[tuple[int, Any]]:
    since = time.perf_counter()
    part = waiting.popleft().result()
    book("read", since)
    for index, sample in part:
        if isinstance(sample, DensevlError):
            raise sample
        yield index, sample
