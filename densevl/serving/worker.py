"""One thread per device. It owns the models there, and runs jobs, several in one pass if possible."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

PATIENCE = 0.005  # seconds that a GPU waits for more jobs; on a CPU a larger pass saves little


class Stopped(Exception):
    """The worker accepts no more jobs."""


@dataclass(frozen=True, eq=False)
class Job:
    """Work for the device.

    Attributes:
        call: computes the results of several items, in order. item: the input of this job.
        kind: jobs of equal kind may share a pass; None never does.
        share: the share of a pass that the item takes.
    """

    call: Callable[[Sequence[Any]], Sequence[Any]]
    item: Any = None
    kind: Hashable = None
    share: float = 1.0
    done: Future[Any] = field(default_factory=Future)


class Worker:
    """Runs jobs in the order they arrive, in its own thread."""

    def __init__(self, device: torch.device) -> None:
        """Start the thread."""
        self.device, self.passes, self.shared = device, 0, 0
        self._patience = 0.0 if device.type == "cpu" else PATIENCE
        self._waiting: deque[Job | None] = deque()
        self._changed = threading.Condition()
        self._running, self._dropped = 0, False
        self._thread = threading.Thread(target=self._work, name=f"densevl-{device}", daemon=True)
        self._thread.start()

    @property
    def load(self) -> int:
        """Number of jobs that run or wait."""
        return self._running + len(self._waiting)

    async def run(self, job: Job) -> Any:
        """Return the result of a job.

        If the task is cancelled, a waiting job is dropped, and a running one is awaited, because its resources are only
        free then.

        Raises:
            Stopped: If waiting jobs were dropped before this one started.
        """
        with self._changed:
            if self._dropped:
                raise Stopped
            self._waiting.append(job)
            self._changed.notify()
        result = asyncio.wrap_future(job.done)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            if not job.done.cancel():
                await asyncio.wait([result])
            raise

    def drop(self) -> None:
        """Drop waiting jobs, and accept no more."""
        with self._changed:
            waiting = [job for job in self._waiting if job is not None]
            self._dropped = True
            self._waiting.clear()
        for job in waiting:
            if job.done.set_running_or_notify_cancel():
                job.done.set_exception(Stopped())

    def close(self) -> None:
        """Finish waiting jobs, then end the thread."""
        with self._changed:
            self._waiting.append(None)
            self._changed.notify()

    def ended(self, seconds: float) -> bool:
        """Return whether the thread of a closed worker ends within this time."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        with torch.no_grad():
            while together := self._take():
                self._finish(together)
                with self._changed:
                    self._running = 0

    def _take(self) -> list[Job]:
        """The jobs of the next pass; none once the worker is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            first = self._waiting.popleft()
            if first is None:
                return []
            self._running = 1
            if first.kind is not None and self._patience:
                self._changed.wait(self._patience)
            together, room = [first], 1 + 1e-9 - first.share
            for job in list(self._waiting) if first.kind is not None else ():
                if job is not None and job.kind == first.kind and job.share <= room:
                    self._waiting.remove(job)
                    together.append(job)
                    room -= job.share
            self._running = len(together)
        return together

    def _finish(self, together: list[Job]) -> None:
        wanted = [job for job in together if job.done.set_running_or_notify_cancel()]
        if not wanted:
            return
        self.passes, self.shared = self.passes + 1, self.shared + len(wanted)
        try:
            for job, result in zip(wanted, wanted[0].call([job.item for job in wanted]), strict=True):
                job.done.set_result(result)
        except Exception as error:  # noqa: BLE001  whoever asked is told
            if len(wanted) == 1:
                wanted[0].done.set_exception(error)
                return
            for job in wanted:  # one of them is at fault: each alone
                self._alone(job)

    def _alone(self, job: Job) -> None:
        try:
            (result,) = job.call([job.item])
            job.done.set_result(result)
        except Exception as error:  # noqa: BLE001
            job.done.set_exception(error)


def alone(call: Callable[[], Any], items: Sequence[Any]) -> list[Any]:
    """A `Job.call` for what shares a pass with nothing."""
    return [call() for _ in items]
