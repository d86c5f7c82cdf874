"""A whole fit of contexts: folds that say how many steps are best, then all examples; and its checkpoint.

A killed fit goes on from its checkpoint and ends in the same bytes. A checkpoint of another fit is left alone, and
replaced.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from densevl import digest
from densevl.errors import ModelError, WeightsError
from densevl.fewshot.choosing import rank
from densevl.fewshot.prompts.contexts import Contexts, Tower
from densevl.fewshot.prompts.training import Run, Task
from densevl.files import atomic_write
from densevl.fitted import to_bytes
from densevl.weights import below, read_checkpoint

Learned = TypeVar("Learned")
Progress = Callable[[int, int], None]
SECONDS = 20.0  # between checkpoints
KIND = "densevl-prompts-1"


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. Attributes: steps: at most. rate: of Adam at its highest. folds: that examples are judged
    in to find the best number of steps; 1 takes all steps."""

    steps: int
    rate: float
    folds: int


@dataclass(frozen=True)
class Plan:
    """How long and how fast, where every image is asked for itself. Attributes: steps: of Adam. batch: images of one.
    rate: at its highest, of words. folds: as of `Schedule`. seed: of the order of images."""

    steps: int
    batch: int
    rate: float
    folds: int
    seed: int

    def batches(self, count: int) -> Iterator[torch.Tensor]:
        """Which of so many samples each step takes, in a seeded order: every one once before any comes again."""
        batch, generator = min(self.batch, count), torch.Generator().manual_seed(self.seed)
        rounds = [torch.randperm(count, generator=generator) for _ in range(-(-self.steps * batch // count))]
        yield from torch.cat(rounds)[: self.steps * batch].split(batch)

    def fallen(self, step: int) -> float:
        """The share of the rate at a step: a cosine."""
        return 0.5 + 0.5 * math.cos(math.pi * step / self.steps)

    def recent(self, losses: Sequence[float], count: int) -> float:
        """The mean loss of the last round over so many samples."""
        last = losses[-max(1, count // min(self.batch, count)) :]
        return sum(last) / len(last)


@dataclass(frozen=True, eq=False)
class Fitted:
    """What came out. Attributes: contexts: None where the words as they were are best. steps: that were taken.
    loss: at the end. gain: of the likelihood of left-out examples, per example; None without folds."""

    contexts: Contexts | None
    steps: int
    loss: float
    gain: float | None


class Fit:
    """One fit, to be run once."""

    def __init__(
        self,
        tower: Tower,
        task: Task,
        start: Contexts,
        schedule: Schedule,
        *,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Prepare.

        Args:
            checkpoint: a file to write every 20 seconds, and to go on from. progress: called with steps done and all.
        """
        self._tower, self._task, self._start, self._schedule = tower, task, start, schedule
        self._path, self._progress = checkpoint, progress
        self._parts = blocks(task.targets, schedule.folds)
        self._curves = torch.zeros(len(self._parts), schedule.steps + 1, dtype=torch.float64)
        self._stage, self._saved, self._at = 0, time.monotonic(), (0, math.nan)

    def run(self) -> Fitted:
        """All folds, then all examples; what was trained before is not trained again.

        Raises:
            ModelError: training diverges.
            OutputError: the checkpoint cannot be written.
        """
        held = self._held()
        for stage in range(self._stage, len(self._parts)):
            self._stage, kept_N = stage, self._parts[stage]
            run = self._begin((~kept_N).nonzero().flatten(), held)
            held, own_N = {}, kept_N.nonzero().flatten()
            if not run.step:
                self._curves[stage, 0] = self._judge(self._task.text, own_N)
            while run.step < self._schedule.steps:
                rows = self._advance(run)
                if run.step > 1:
                    self._curves[stage, run.step - 1] = self._judge(rows, own_N)
                self._keep(run)
            self._curves[stage, -1] = self._judge(run.rows(), own_N)
        self._stage = len(self._parts)
        total = self._curves.sum(dim=0)
        best = int(total.argmax()) if len(self._parts) else self._schedule.steps
        gain = float(total.max() - total[0]) / self._task.text.shape[0] if len(self._parts) else None
        run = self._begin(torch.arange(len(self._task.targets)), held)
        while run.step < best:
            self._advance(run)
            self._keep(run)
        return Fitted(run.contexts if best else None, best, run.loss, gain)

    def _judge(self, rows: torch.Tensor, kept_N: torch.Tensor) -> float:
        """One wrong label among all examples is allowed for; see `choosing.best`."""
        return self._task.likelihood(rows, kept_N, 1 / (len(self._task.targets) + 1))

    def _begin(self, kept_N: torch.Tensor, held: Mapping[str, torch.Tensor]) -> Run:
        part, plan = self._task.part(kept_N.to(self._task.targets.device)), self._schedule
        run = Run(self._tower, part, self._start, plan.steps, plan.rate)
        if held:
            run.go_on(held, *self._at)
        return run

    def _advance(self, run: Run) -> torch.Tensor:
        rows = run.advance()
        if not torch.isfinite(rows).all() or not torch.isfinite(run.contexts.words[0]).all():
            raise ModelError(f"learning prompts diverged at step {run.step}; take a smaller rate")
        if self._progress is not None:
            self._progress(self._stage * self._schedule.steps + run.step, self._all)
        return rows

    @property
    def _all(self) -> int:
        return (len(self._parts) + 1) * self._schedule.steps

    @property
    def _key(self) -> str:
        """What decides the result."""
        task, schedule = self._task, self._schedule
        tensors = {"features": task.features, "targets": task.targets, "weights": task.weights, "text": task.text}
        tensors |= {f"words {number}": words for number, words in enumerate(self._start.words)}
        if task.views is not None:
            tensors["views"] = task.views
        facts = [task.scale, task.tie, schedule, self._start.fronts, task.spoken.strings]
        own = [str(fact) for fact in (*facts, task.spoken.member.tolist())]
        return digest.of_text(self._tower.text_fingerprint, digest.of_tensors(sorted(tensors.items())), *own)

    def _keep(self, run: Run) -> None:
        """Write the checkpoint, if it is time."""
        if self._path is None or time.monotonic() - self._saved < SECONDS:
            return
        content = {f"run.{name}": value for name, value in run.tensors().items()} | {"curves": self._curves}
        header = {"kind": KIND, "key": self._key, "stage": str(self._stage), "step": str(run.step)}
        header |= {"loss": repr(run.loss)}
        own = {name: value.detach().cpu().contiguous().clone() for name, value in content.items()}
        atomic_write(self._path, to_bytes(own, header))
        self._saved = time.monotonic()

    def _held(self) -> dict[str, torch.Tensor]:
        """What a checkpoint of this very fit holds; nothing where there is none."""
        if self._path is None or not self._path.is_file():
            return {}
        try:
            found = read_checkpoint(self._path)
            if found.header.get("kind") != KIND or found.header.get("key") != self._key:
                return {}
            self._stage, self._at = int(found.header["stage"]), (int(found.header["step"]), float(found.header["loss"]))
            self._curves = found.tensors["curves"].clone()
            return dict(below(found.tensors, "run."))
        except (WeightsError, KeyError, ValueError):
            return {}


def blocks(targets_N: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Which samples each fold judges, (N,) bool; none where no class has two.

    Neighbours in order are in one fold, where `choosing.folds` parts them: places of one image are alike. A class of
    one sample is never left out.
    """
    counts = torch.bincount(targets_N)[targets_N]
    if count < 2 or not (counts > 1).any():
        return []
    fold = torch.where(counts > 1, rank(targets_N) * torch.minimum(counts, counts.new_tensor(count)) // counts, -1)
    return [fold == number for number in range(int(fold.max()) + 1)]


def all_or_none(
    task: Task,
    plan: Plan,
    train: Callable[[Task, Learned, Plan, Callable[[], None]], tuple[Learned, float]],
    start: Learned,
    likelihood: Callable[[Learned, Task, torch.Tensor, float], float],
    progress: Progress | None = None,
) -> tuple[Learned | None, dict[str, float]]:
    """What all steps lead to, or None where left-out examples say that the words as they were are better.

    Args:
        train: from `start`, and the loss; it calls its last argument after every step. likelihood: of some samples by
            what was trained, as `Task.likelihood`.

    Returns:
        It, and "steps", "loss" and, with folds, the "gain" in likelihood per class, as head "prompt" tells them.

    Raises:
        ModelError: training diverges.
    """
    parts, done = blocks(task.targets, plan.folds), 0

    def hear() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, (len(parts) + 1) * plan.steps)

    gain, smoothing = 0.0, 1 / (len(task.targets) + 1)
    for kept_N in parts:
        judged, _ = train(task.part((~kept_N).nonzero().flatten()), start, plan, hear)
        gain += likelihood(judged, task, kept_N, smoothing)
        gain -= task.likelihood(task.text, kept_N.nonzero().flatten(), smoothing)
    found = {"gain": gain / len(task.text)} if parts else {}
    if parts and gain <= 0:
        return None, {"steps": 0, **found}
    made, loss = train(task, start, plan, hear)
    return made, {"steps": plan.steps, "loss": loss, **found}
