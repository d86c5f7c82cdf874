"""Servers for tests: the app behind a real uvicorn in a thread, and models that are slow on purpose."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn

from densevl.results import SegmentationResult
from densevl.serving import answers
from densevl.serving.app import create_app
from densevl.serving.connections import Connection
from densevl.serving.gate import Gate
from densevl.serving.models import Models, Segmented
from densevl.serving.service import Service
from densevl.serving.settings import Limits, Settings
from densevl.serving.stopping import Server
from densevl.serving.worker import Job

EXAMPLES = Path(answers.__file__).parent / "page" / "examples"


class Slow(Models):
    """Models that take so many seconds for a photo, and say its width."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.device, self.ran = seconds, torch.device("cpu"), 0

    def segment(self, rgb: Any, labels: Any, *given: Any) -> Job:
        return Job(self._run, (rgb, labels))

    def _run(self, items: Sequence[Any]) -> list[Segmented]:
        time.sleep(self.seconds)
        self.ran += 1
        ((rgb, labels),) = items
        empty = np.zeros(rgb.shape[:2])
        result = SegmentationResult(empty.astype(np.int16), labels.names, empty.astype(np.float32), rgb)
        return [Segmented(result, np.zeros((1, 1, 1), np.int16), np.zeros((1, 1, 1), np.float32))]


class Held(Slow):
    """Models that work on a photo until they are let go. Attributes: begun, go: events."""

    def __init__(self) -> None:
        super().__init__(0)
        self.begun, self.go = threading.Event(), threading.Event()

    def _run(self, items: Sequence[Any]) -> list[Segmented]:
        self.begun.set()
        self.go.wait(60)
        return super()._run(items)


def mini() -> Models:
    """The model of the package, with what it can do."""
    return Models(Settings(("mini",), ("maskclip_value", "sclip"), ("mini-sam", "grid")), "cpu")


@contextmanager
def running(models: Models, **limits: int) -> Iterator[tuple[str, Gate, Service]]:
    """A server: its address, its gate and its service."""
    service = Service([models], Limits(**limits))
    gate = create_app(service)
    config = uvicorn.Config(gate, http=Connection, port=0, log_level="error", lifespan="on")
    server = Server(config, gate, service)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", gate, service
    server.should_exit = True
    thread.join(20)


if __name__ == "__main__":  # a process of its own, to be told to stop
    from unittest import mock

    from densevl.serving import models, run, stopping

    seconds, grace = float(sys.argv[1]), int(sys.argv[2])
    with (
        mock.patch.object(models, "Models", return_value=Slow(seconds)),
        mock.patch.object(stopping, "GRACE", grace),
    ):
        run.serve(Settings(), Limits(), port=0, ready=lambda address: print(address, flush=True))
