"""The loop over a benchmark: read ahead, predict, count, show, save; alone or as one of several processes.

An image is counted once, by whoever gets it. Integer counts make the result independent of order, of the number of
processes and of how often a run was killed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from densevl.evaluation import measuring, processes
from densevl.evaluation.confusion import image_miou, measures
from densevl.evaluation.datasets import Dataset, Sample
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.faults import EvaluationError
from densevl.evaluation.predicting import Prediction, Predictor
from densevl.evaluation.state import State
from densevl.files import atomic_write, shown
from densevl.images import encode_png

AHEAD = 4
"""Images read while others are predicted."""
SAVE_EVERY = 10.0
"""Seconds between two savings."""
STATE = "state"

Show = Callable[[int, int, float], None]
"""Called with images done, images in all, and the running mIoU (0..1)."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an evaluation counted.

    Attributes:
        experiment, dataset: what was evaluated. counts: by measure. ranking: mIoU of each image.
        seconds: wall time of this run; parts: of it, waiting to read, model, deciding and counting.
        images: how many images this run did, in all processes; resumed: how many earlier runs had done.
        used: `Predictor.facts` of the model that did it.
    """

    experiment: Experiment
    dataset: Dataset
    counts: measuring.AllCounts
    ranking: npt.NDArray[np.float64]
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)
    images: int = 0
    resumed: int = 0
    used: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, float]:
        """The headline numbers, 0..1; see `measuring.summary`."""
        return measuring.summary(self.counts)


def run(
    experiment: Experiment,
    work_dir: str | Path | None = None,
    *,
    dataset: Dataset | None = None,
    predictor: Predictor | None = None,
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
        dump: a folder that gets each prediction as a 16-bit PNG, class index, 65535 for nothing, in the tree of the
            images.

    Raises:
        DatasetError: the dataset or one of its files. EvaluationError: the work folder belongs to another experiment.
        DensevlError: whatever `Segmenter` raises.
    """
    dataset = dataset or experiment.open()
    if len(dataset) == 0:
        raise EvaluationError(f"'{dataset.name}' has no images at {shown(dataset.root)}: there is nothing to evaluate")
    predictor = predictor or experiment.predictor(dataset, device=processes.device())
    classes, fingerprint = len(dataset.names), experiment.fingerprint(dataset)
    folder = Path(work_dir) / STATE if work_dir is not None else None
    before = _resume(folder, fingerprint, experiment, dataset)
    path = folder / _file_name(folder) if folder is not None else None
    processes.barrier()  # nobody writes before everybody has read and named its file
    mine = np.flatnonzero(~before.done)[processes.rank() :: processes.world()].tolist()
    now = _blank(fingerprint, experiment, dataset)
    running = measuring.zeros(("iou",), classes)["iou"] + before.counts["iou"]
    started = saved = time.perf_counter()
    clock = predictor.clock
    clock.seconds.clear()
    try:
        for index, sample in _ahead(dataset, mine, clock.add):
            found = predictor(sample.image)
            since = time.perf_counter()
            counts = measuring.count(experiment.measures, classes, sample, found, experiment.boundary_ratio)
            now.add(index, counts, image_miou(counts["iou"]))
            if dump is not None:
                _dump(Path(dump), sample, found)
            running += counts["iou"]
            if show is not None:
                show(int(now.done.sum()), len(mine), measures(running)["mIoU"])
            if path is not None and time.perf_counter() - saved >= save_every:
                now.save(path)
                saved = time.perf_counter()
            clock.add("count", since)
    finally:
        if path is not None and now.done.any():
            now.save(path)
    seconds = time.perf_counter() - started
    total = State(
        fingerprint,
        processes.summed(now.done),
        processes.summed(now.ranking),
        {name: processes.summed(array) for name, array in now.counts.items()},
    )
    images, resumed = int(total.done.sum()), int(before.done.sum())
    total.merge(before)
    parts, used = dict(clock.seconds), predictor.facts()
    return Outcome(experiment, dataset, total.counts, total.ranking, seconds, parts, images, resumed, used)


def _blank(fingerprint: str, experiment: Experiment, dataset: Dataset) -> State:
    state = State.empty(fingerprint, len(dataset))
    state.counts = measuring.zeros(experiment.measures, len(dataset.names))
    return state


def _resume(folder: Path | None, fingerprint: str, experiment: Experiment, dataset: Dataset) -> State:
    """What earlier runs counted.

    Raises:
        EvaluationError: they counted another experiment.
    """
    state = _blank(fingerprint, experiment, dataset)
    for path in sorted(folder.glob("*.npz")) if folder is not None else ():
        part = State.load(path)
        if part.fingerprint != fingerprint:
            raise EvaluationError(
                f"{shown(path.parent)} holds counts of another experiment (settings, images or classes differ); "
                "name a new work folder or remove it"
            )
        state.merge(part)
    return state


def _file_name(folder: Path) -> str:
    """A name no earlier run has: its number among runs, and the rank."""
    runs = {int(path.name.split("-")[0]) for path in folder.glob("*-*.npz")} if folder.exists() else set()
    return f"{max(runs, default=0) + 1:04d}-{processes.rank():04d}.npz"


def _ahead(
    dataset: Dataset, indices: Sequence[int], book: Callable[[str, float], float]
) -> Iterator[tuple[int, Sample]]:
    """Samples in order, a few read by threads beforehand; waiting for them is booked as "read"."""
    with ThreadPoolExecutor(max_workers=min(AHEAD, 2), thread_name_prefix="densevl-read") as pool:
        waiting: deque[tuple[int, Future[Sample]]] = deque()
        try:
            for index in indices:
                waiting.append((index, pool.submit(dataset.__getitem__, index)))
                if len(waiting) > AHEAD:
                    yield _next(waiting, book)
            while waiting:
                yield _next(waiting, book)
        finally:
            for _, future in waiting:
                future.cancel()


def _next(waiting: deque[tuple[int, Future[Sample]]], book: Callable[[str, float], float]) -> tuple[int, Sample]:
    since = time.perf_counter()
    index, future = waiting.popleft()
    sample = future.result()
    book("read", since)
    return index, sample


def _dump(folder: Path, sample: Sample, found: Prediction) -> None:
    """-1 wraps to 65535."""
    atomic_write(folder / f"{sample.item.key}.png", encode_png(Image.fromarray(found.labels.astype(np.uint16))))
