"""The thread of a device: what shares a pass, whose error it is, and the order."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from densevl.serving.worker import Job, Stopped, Worker


def run(*jobs: Job, device: str = "cpu") -> tuple[list[object], Worker]:
    """Results or errors of jobs that all wait when the first is taken."""
    worker, ready = Worker(torch.device(device)), threading.Event()

    async def all_of() -> list[object]:
        blocked = asyncio.ensure_future(worker.run(Job(lambda items: [ready.wait(5)])))
        await asyncio.sleep(0.05)
        tasks = [asyncio.ensure_future(worker.run(job)) for job in jobs]
        await asyncio.sleep(0)
        ready.set()
        await blocked
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(all_of())
    worker.close()
    return found, worker


def test_jobs_of_a_kind_share_a_pass_while_there_is_room() -> None:
    seen: list[list[object]] = []

    def call(items):
        seen.append(list(items))
        return [item * 10 for item in items]

    kinds = ["a", "b", "a", None, None, "a", "a", "a"]
    found, worker = run(*(Job(call, number, kind, 0.3) for number, kind in enumerate(kinds)))
    assert found == [number * 10 for number in range(8)]
    assert seen == [[0, 2, 5], [1], [3], [4], [6, 7]]
    assert (worker.passes, worker.shared) == (6, 9)


def test_an_error_is_that_of_the_one_who_made_it() -> None:
    def call(items):
        if "bad" in items:
            raise ValueError("bad")
        return items

    found, _ = run(*(Job(call, item, "a", 0.2) for item in ("x", "bad", "y")))
    assert found[0] == "x"
    assert isinstance(found[1], ValueError)
    assert found[2] == "y"


def test_gradients_are_off() -> None:
    found, _ = run(Job(lambda items: [torch.is_grad_enabled()]))
    assert found == [False]


def test_what_waits_is_dropped_when_its_task_is_cancelled() -> None:
    worker, ran = Worker(torch.device("cpu")), []

    async def main() -> None:
        first = asyncio.ensure_future(worker.run(Job(lambda items: [threading.Event().wait(0.2)])))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(worker.run(Job(lambda items: [ran.append(1)])))
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not first.done()
        await first
        await worker.run(Job(lambda items: [None]))

    asyncio.run(main())
    worker.close()
    assert ran == []


def test_what_waits_is_told_when_it_is_dropped_and_what_runs_ends() -> None:
    worker, go, ran = Worker(torch.device("cpu")), threading.Event(), []

    async def main() -> list[object]:
        first = asyncio.ensure_future(worker.run(Job(lambda items: [go.wait(5)])))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(worker.run(Job(lambda items: [ran.append(1)])))
        await asyncio.sleep(0)
        worker.drop()
        third = asyncio.ensure_future(worker.run(Job(lambda items: [ran.append(1)])))
        told = await asyncio.gather(second, third, return_exceptions=True)
        go.set()
        return [await first, *told]

    first, *told = asyncio.run(main())
    assert first is True
    assert [type(each) for each in told] == [Stopped, Stopped]
    assert ran == []
    worker.close()
    assert worker.ended(5)
