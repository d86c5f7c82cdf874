"""Which of two ways to compute the same is faster on this machine: `is_faster`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

ROUNDS = 5
"""Calls of each, in turn, of which the least counts: other work on the machine disturbs some of them."""
Call = Callable[[], Any]


def is_faster(one: Call, other: Call, margin: float = 1.0) -> bool:
    """Whether a call takes less than `margin` of another's time on one thread.

    It is asked on one thread however many there are: CPU time is then that of the work, which other programs disturb
    least, and a machine gives the same answer, and so the same numbers, whatever number of threads a run has.
    """
    with _one_thread():
        rounds = [[_seconds(call) for call in (one, other)] for _ in range(ROUNDS)]
    ours, others = (min(times) for times in zip(*rounds, strict=True))
    return ours < margin * others


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _seconds(call: Call) -> float:
    started = time.thread_time()
    call()
    return time.thread_time() - started
