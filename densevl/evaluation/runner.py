"""The loop over a benchmark: read ahead, predict, count, show, save; alone or as one of several processes.

An image is counted once, by whoever gets it. Integer counts make the result independent of order, of the number of
processes and of how often a run was killed. What is counted is the task's business (`tasks`).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import DensevlError, EvaluationError
from densevl.evaluation import distributed
from densevl.evaluation.checkpoint import State
from densevl.evaluation.experiment import AnyDataset, AnyPredictor, Experiment
from densevl.evaluation.keeping import Keeper
from densevl.evaluation.metrics import semantic as measuring
from densevl.evaluation.tasks import Task
from densevl.files import atomic_write, shown

AHEAD, READERS = 4, max(1, min(4, os.cpu_count() or 1))
"""Images that a thread reads in one go while others are predicted, and how many threads do. In one go, because every
hand-over between threads takes time from the model's thread too, which counts where images and model are small."""
SAVE_EVERY = 10.0
"""Seconds between two savings."""
SHOW_EVERY = 0.2
"""Seconds after which the running number is computed anew."""
STATE = "state"

Show = Callable[[int, int, float], None]
"""Called with images done, images in all, and the task's running number such as mIoU (0..1)."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an evaluation counted.

    Attributes:
        experiment, dataset: what was evaluated. counts: by measure. ranking: the score of each image by itself.
        seconds: wall time of this run; parts: of it, waiting to read, model, deciding and counting.
        images: how many images this run did, in all processes; resumed: how many earlier runs had done.
        used: `Predictor.facts` of the model that did it.
        kept: what was kept of images, in the first process; empty in others.
    """

    experiment: Experiment
    dataset: AnyDataset
    counts: measuring.AllCounts
    ranking: npt.NDArray[np.float64]
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)
    images: int = 0
    resumed: int = 0
    used: dict[str, Any] = field(default_factory=dict)
    kept: dict[int, Any] = field(default_factory=dict)

    @cached_property
    def task(self) -> Task:
        """What was counted."""
        return self.experiment.judge(self.dataset)

    @cached_property
    def summary(self) -> dict[str, float]:
        """The headline numbers, 0..1 or NaN, in the first process."""
        return self.task.summary(self.counts, self.kept)

    @property
    def headline(self) -> str:
        """The number that stands for the rest, in words: "mIoU 42.10"."""
        return f"{self.task.headline} {100 * self.summary[self.task.headline]:.2f}"


def run(
    experiment: Experiment,
    work_dir: str | Path | None = None,
    *,
    dataset: AnyDataset | None = None,
    predictor: AnyPredictor | None = None,
    show: Show | None = None,
    save_every: float = SAVE_EVERY,
    dump: str | Path | None = None,
) -> Outcome:
    """Evaluate.

    Args:
        experiment: what to do.
        work_dir: where counts are kept for going on after a kill; None keeps none.
        dataset, predictor: opened already; None opens and loads what the experiment says.
        show: told after every image of this process.
        save_every: seconds between two savings of the counts; 0 saves after every image.
        dump: a folder that gets each prediction, as the task writes it: label maps as 16-bit PNG (class index, 65535
            for nothing), in the tree of the images; instances as COCO results; panoptic maps as COCO's PNG and JSON.

    Raises:
        DatasetError: the dataset or one of its files. EvaluationError: the work folder belongs to another experiment,
        or several processes have none for what the task keeps. DensevlError: whatever the model raises.
    """
    dataset = dataset or experiment.open()
    if len(dataset) == 0:
        raise EvaluationError(f"'{dataset.name}' has no images at {shown(dataset.root)}: there is nothing to evaluate")
    task = experiment.judge(dataset)
    if task.keeps and work_dir is None and distributed.world() > 1:
        raise EvaluationError("several processes meet in files: name a work folder")
    predictor = predictor or experiment.predictor(dataset, device=distributed.device())
    fingerprint = experiment.fingerprint(dataset)
    folder = Path(work_dir) / STATE if work_dir is not None else None
    before = _resume(folder, State.empty(fingerprint, len(dataset), task.zeros()))
    path = folder / _file_name(folder) if folder is not None else None
    distributed.barrier()  # nobody writes before everybody has read and named its file
    mine = np.flatnonzero(~before.done)[distributed.rank() :: distributed.world()].tolist()
    now, keeper = State.empty(fingerprint, len(dataset), task.zeros()), Keeper(path)
    running, told = 0.0, float("-inf")
    started = saved = time.perf_counter()
    clock = predictor.clock
    clock.seconds.clear()
    try:
        for number, (index, sample) in enumerate(_ahead(dataset, mine, clock.add), start=1):
            found = task.predict(predictor, sample)
            since = time.perf_counter()
            counted = task.count(index, sample, found)
            now.add(index, counted.counts, counted.ranking)
            keeper.add(index, counted.kept)
            if dump is not None:
                for name, content in task.dump(index, sample, found).items():
                    atomic_write(Path(dump) / name, content)
            if show is not None:
                if number == len(mine) or since - told >= SHOW_EVERY:
                    running, told = task.so_far(measuring.added(before.counts, now.counts)), since
                show(number, len(mine), running)
            if path is not None and time.perf_counter() - saved >= save_every:
                _save(now, keeper, path)
                saved = time.perf_counter()
            clock.add("count", since)
    finally:
        if path is not None and now.done.any():
            _save(now, keeper, path)
    seconds = time.perf_counter() - started
    total = State(
        fingerprint,
        distributed.summed(now.done),
        distributed.summed(now.ranking),
        {name: distributed.summed(array) for name, array in now.counts.items()},
    )
    images, resumed = int(total.done.sum()), int(before.done.sum())
    total.merge(before)
    distributed.barrier()  # all have saved
    kept = keeper.collect() if task.keeps and distributed.rank() == 0 else {}
    parts, used = dict(clock.seconds), predictor.facts()
    return Outcome(experiment, dataset, total.counts, total.ranking, seconds, parts, images, resumed, used, kept)


def _save(state: State, keeper: Keeper, path: Path) -> None:
    keeper.save()  # first: counts must not name an image whose shard is not there
    state.save(path)


def _resume(folder: Path | None, state: State) -> State:
    """What earlier runs counted, added to an empty state.

    Raises:
        EvaluationError: they counted another experiment.
    """
    for path in sorted(folder.glob("*.npz")) if folder is not None else ():
        part = State.load(path)
        if part.fingerprint != state.fingerprint:
            raise EvaluationError(
                f"{shown(path.parent)} holds counts of another experiment (settings, images or classes differ); "
                "name a new work folder or remove it"
            )
        state.merge(part)
    return state


def _file_name(folder: Path) -> str:
    """A name no earlier run has: its number among runs, and the rank."""
    runs = {int(path.name.split("-")[0]) for path in folder.glob("*-*.npz")} if folder.exists() else set()
    return f"{max(runs, default=0) + 1:04d}-{distributed.rank():04d}.npz"


def _ahead(
    dataset: AnyDataset, indices: Sequence[int], book: Callable[[str, float], float]
) -> Iterator[tuple[int, Any]]:
    """Samples in order, some read by threads beforehand; waiting for them is booked as "read"."""
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


def _read(dataset: AnyDataset, indices: Sequence[int]) -> list[tuple[int, Any]]:
    """Samples, or the error at the first that cannot be read, for whoever comes to it."""
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
