"""Results are written while the next are made: told of in order, each error its own image's, nothing lost."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from densevl.errors import ImageError, OutputError
from densevl.pipelines.folder import each
from densevl.pipelines.folder.each import one_by_one, work_through
from densevl.pipelines.folder.watch import Job

JOBS = [Job(str(number), str(number)) for number in range(8)]


class Told:
    """What a run says, and what it wrote."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.written: list[str] = []

    def run(self, call, save=None, jobs=JOBS) -> None:
        def saving(job: Job, result: object) -> None:
            if save is not None:
                save(job)
            self.written.append(job.name)

        def failed(job: Job, error: Exception) -> None:
            self.lines.append(f"{job.name} {error}")

        def saved(job: Job, result: object) -> None:
            self.lines.append(job.name)

        work_through(one_by_one(call), jobs, lambda job: job.name in self.written, saving, failed, saved)


def test_a_result_is_written_while_the_next_one_is_made() -> None:
    begun, told = threading.Event(), Told()

    def call(image: str) -> str:
        assert image == "0" or begun.wait(10), "the second waits for the first to be written"
        return image

    told.run(call, lambda job: begun.set(), JOBS[:2])
    assert told.written == ["0", "1"]


def test_all_is_told_in_order_and_errors_stay_with_their_image() -> None:
    told = Told()

    def call(image: str) -> str:
        if image in "25":
            raise ImageError("unreadable")
        return image

    def save(job: Job) -> None:
        time.sleep(0.01 if job.name == "0" else 0)
        if job.name == "6":
            raise ImageError("made while written")

    told.run(call, save)
    assert told.lines == ["0", "1", "2 unreadable", "3", "4", "5 unreadable", "6 made while written", "7"]
    assert told.written == ["0", "1", "3", "4", "7"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OutputError])
def test_what_was_made_before_the_end_is_written(error) -> None:
    told = Told()

    def call(image: str) -> str:
        if image == "3":
            raise error
        return image

    with pytest.raises(error):
        told.run(call, lambda job: time.sleep(0.01))
    assert told.written == told.lines == ["0", "1", "2"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("densevl-writing")]


@pytest.fixture
def _heeded() -> Iterator[None]:
    """Ctrl-C counts, as it does not in a process that a shell put into the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeded")
def test_ctrl_c_while_a_result_is_told_does_not_cut_its_line() -> None:
    told, lines = Told(), list[str]()

    def saved(job: Job, result: object) -> None:
        if job.name == "2":
            signal.raise_signal(signal.SIGINT)
        lines.append(job.name)

    save = lambda job, result: told.written.append(job.name)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        work_through(one_by_one(str), JOBS, lambda job: job.name in told.written, save, print, saved)
    assert lines == told.written
    assert "2" in lines


def test_a_disk_that_refuses_ends_the_run() -> None:
    told, made = Told(), []

    def save(job: Job) -> None:
        if job.name == "1":
            raise OutputError("full")

    with pytest.raises(OutputError, match="full"):
        told.run(lambda image: made.append(image) or image, save)
    assert told.lines == told.written  # those that were in line before it was known, too
    assert "1" not in told.lines


@pytest.mark.parametrize(("size", "most"), [(10, 3), (600, 1)], ids=["by number", "by bytes"])
def test_few_results_wait_to_be_written(monkeypatch, size: int, most: int) -> None:
    monkeypatch.setattr(each, "WAITING", 3)
    monkeypatch.setattr(each, "HELD", 1000)
    told, made, waiting = Told(), [], []

    def call(image: str) -> SimpleNamespace:
        waiting.append(len(made) - len(told.written))
        made.append(image)
        return SimpleNamespace(labels=np.zeros(size, np.uint8))

    told.run(call, lambda job: time.sleep(0.005))
    assert max(waiting) <= most
    assert told.written == [job.name for job in JOBS]


def test_what_the_model_makes_while_it_is_written_is_not_left_to_the_thread() -> None:
    told, threads = Told(), []
    told.run(lambda image: SimpleNamespace(progress=None), lambda job: threads.append(threading.current_thread()))
    assert set(threads) == {threading.main_thread()}
