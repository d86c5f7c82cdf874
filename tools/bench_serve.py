"""Measure `densevl serve` as its clients see it: python -m tools.bench_serve [--model mini] [--clients 64] [--queue 2].

First, the time from process start to the first answer. Then many clients at once, each with its own photo; they come
again when the server says that it is busy. Meanwhile a separate process asks for /healthz, 20 ms after each answer, and
reports how late it woke up itself: that much delay is due to the machine, not the server.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

PAUSE = 0.02  # seconds from an answer of /healthz to the next request
AGAIN = 0.05  # seconds after which a refused client comes again
WORDS = ("cat", "dog", "pizza", "house", "boat", "penguin", "ball", "car", "fish", "elephant")
SIZES = ((192, 160), (96, 128), (256, 192), (320, 240), (64, 64))


def photo(number: int, size: tuple[int, int] = SIZES[0]) -> bytes:
    """Encode a PNG that differs for each number. Args: size: width and height in pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def process(*options: str, log: int | None = None, **environment: str) -> Iterator[tuple[str, int]]:
    """Run `densevl serve` as a process; yield its address and number. Args: log: where its stderr goes."""
    command = [sys.executable, "-m", "densevl", "serve", "--port", "0", *options]
    own_environment = {**os.environ, **environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=own_environment) as own:
        try:
            yield own.stdout.readline().split()[2], own.pid  # type: ignore[union-attr]
        finally:
            own.terminate()


@contextmanager
def serving(model: str, queue: int) -> Iterator[tuple[str, int]]:
    """The same, but report the times to start and to answer."""
    started = time.perf_counter()
    with process("--model", model, "--queue", str(queue)) as (address, pid):
        ready = time.perf_counter() - started
        httpx.post(f"{address}/v1/segment", files={"image": photo(0)}, data={"labels": "cat"}).raise_for_status()
        print(f"ready after {ready:.1f} s, the first answer after {time.perf_counter() - started:.1f} s, "
              f"of which the server computed {computed(pid):.1f} s")  # fmt: skip
        yield address, pid


def watch(address: str) -> None:
    """Ask for /healthz until stdin ends; print a line when ready, then the seconds of answers and of late wake-ups."""
    connection, over = HTTPConnection(address.removeprefix("http://"), timeout=60), []
    answers, late = [], []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: over.append(sys.stdin.read()))
        while not over:
            started = time.perf_counter()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            answers.append(time.perf_counter() - started)
            if len(answers) == 1:
                print("at work", flush=True)
            started = time.perf_counter()
            time.sleep(PAUSE)
            late.append(time.perf_counter() - started - PAUSE)
    print(json.dumps([answers, late]))


async def crowd(address: str, clients: int) -> int:
    """Return how often clients were refused until all had their answer."""
    refused = 0

    async def one(client: httpx.AsyncClient, number: int) -> None:
        nonlocal refused
        asked: dict[str, Any] = {"files": {"image": photo(number)}, "data": {"labels": f"cat, thing {number}"}}
        while (answer := await client.post("/v1/segment", **asked)).status_code == 503:
            refused += 1
            await asyncio.sleep(AGAIN)
        answer.raise_for_status()

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as client:
        await asyncio.gather(*(one(client, number) for number in range(clients)))
    return refused


def together(address: str, clients: int, queue: int) -> None:
    """Run many clients at once, and measure /healthz meanwhile."""
    command = [sys.executable, "-m", "tools.bench_serve", "--watch", address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher:
        watcher.stdout.readline()  # type: ignore[union-attr]
        started = time.perf_counter()
        refused = asyncio.run(crowd(address, clients))
        taken = time.perf_counter() - started
        answers, late = json.loads(watcher.communicate("")[0])
    print(f"{clients} clients on {queue} slots: {taken:.1f} s, sent away {refused} times")
    print(f"/healthz, {len(answers)} times: {spread(answers)}; the watcher itself woke up late by {spread(late)}")


def spread(seconds: list[float]) -> str:
    """Return the median and the 99th percentile, in milliseconds."""
    median, most = (1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.99))
    return f"p50 {median:.0f} ms, p99 {most:.0f} ms"


def resident(pid: int) -> float:
    """Return the memory of a process in megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def private(pid: int) -> float:
    """Megabytes of memory that a process alone has: without pages of files, which the system takes back as it likes."""
    resident_pages, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
    return (resident_pages - shared) * os.sysconf("SC_PAGE_SIZE") / 1e6


def computed(pid: int) -> float:
    """Return the CPU seconds of all threads of a process."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--queue", type=int, default=2)
    parser.add_argument("--watch", metavar="ADDRESS", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.watch:
        watch(given.watch)
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with serving(given.model, given.queue) as (address, _):
        together(address, given.clients, given.queue)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
