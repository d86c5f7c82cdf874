"""The loop of a distillation run: until its budget is spent, with checkpoints and lines of JSON."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass

from densevl.errors import OutputError
from tools.arguments import still_finite, writable
from tools.clipself.run import CHECKPOINT, STUDENT, Run

LOG_EVERY = 25
HALF = 0.0025  # of the share of one step, where only time is known


@dataclass(frozen=True)
class Budget:
    """When a run ends: after `steps`, or after `minutes` of updates; the learning rate decays until then."""

    steps: int | None = None
    minutes: float | None = None

    def used(self, run: Run) -> float:
        """Return the share that is used, 0..1 and above."""
        return run.step / self.steps if self.steps else run.seconds / (60 * (self.minutes or 1))

    def place(self, run: Run) -> float:
        """The middle of the share that belongs to the weights as they are, of those of all steps and the first."""
        half = 0.5 / self.steps if self.steps else HALF
        return (min(1.0, self.used(run)) + half) / (1 + 2 * half)


def train(run: Run, budget: Budget, *, resume: bool = False, save_every: int = 50) -> list[float]:
    """Distil until the budget is spent, then write the student.

    Args:
        run: at its beginning. budget: at least one step is done. resume: resume from the checkpoint in `run.out`.
        save_every: steps between checkpoints.

    Returns:
        The losses of the steps of this call.

    Raises:
        OutputError: If `run.out` holds a checkpoint without `resume`, or one of another run, or a
            student of no run.
        DensevlError: If the training diverged; the last checkpoint before it stays.
    """
    checkpoint, student = run.out / CHECKPOINT, run.out / STUDENT
    if checkpoint.exists() and not resume:
        raise OutputError(f"{run.out} holds a run already; add --resume to go on with it, or name another --out")
    if student.exists() and not checkpoint.exists():
        raise OutputError(f"{student} is there already, and no checkpoint of its run; name another --out")
    writable(checkpoint)
    if resume:
        run.resume()
    if not run.step:
        run.take(budget.place(run))
    losses: list[float] = []
    while (used := budget.used(run)) < 1:
        losses.append(run.update(used))
        still_finite(run.step, losses[-1])
        run.take(budget.place(run))
        if run.step % LOG_EVERY == 0:
            recent = statistics.mean(losses[-LOG_EVERY:])
            line = {"step": run.step, "minutes": round(run.seconds / 60, 2), "loss": round(recent, 4)}
            print(json.dumps(line), flush=True)
        if run.step % save_every == 0:
            run.save()
    run.save()
    run.export()
    return losses
