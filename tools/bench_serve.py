"""`densevl serve` as its clients see it: python -m tools.bench_serve [--model mini] [--clients 64] [--queue 2].

From the start of the process to its first answer; then so many clients at once, each with a photo of its own, who come
again when they are told that the server is busy, while /healthz is asked all along.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import subprocess
import sys
import time

import httpx
import numpy as np
from PIL import Image


def photo(number: int) -> bytes:
    """A PNG of 192 x 160 pixels, different for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((192, 160), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


async def crowd(address: str, clients: int) -> tuple[int, list[float]]:
    """How often clients were sent away, and the seconds that /healthz took."""
    refused, health, over = 0, [], asyncio.Event()

    async def one(client: httpx.AsyncClient, number: int) -> None:
        nonlocal refused
        asked = {"files": {"image": photo(number)}, "data": {"labels": f"cat, thing {number}"}}
        while (answer := await client.post("/v1/segment", **asked)).status_code == 503:  # type: ignore[arg-type]
            refused += 1
            await asyncio.sleep(0.05)
        answer.raise_for_status()

    async def watch(client: httpx.AsyncClient) -> None:
        while not over.is_set():
            started = time.perf_counter()
            await client.get("/healthz")
            health.append(time.perf_counter() - started)
            await asyncio.sleep(0.01)

    limits = httpx.Limits(max_connections=clients + 1)
    async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as client:
        watching = asyncio.ensure_future(watch(client))
        await asyncio.gather(*(one(client, number) for number in range(clients)))
        over.set()
        await watching
    return refused, health


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--queue", type=int, default=2)
    given = parser.parse_args()
    command = [sys.executable, "-m", "densevl", "serve", "--model", given.model, "--port", "0"]
    started = time.perf_counter()
    with subprocess.Popen([*command, "--queue", str(given.queue)], stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().split()[2]  # type: ignore[union-attr]
            ready = time.perf_counter() - started
            httpx.post(f"{address}/v1/segment", files={"image": photo(0)}, data={"labels": "cat"}).raise_for_status()
            print(f"ready after {ready:.1f} s, the first answer after {time.perf_counter() - started:.1f} s")
            started = time.perf_counter()
            refused, health = asyncio.run(crowd(address, given.clients))
            taken = time.perf_counter() - started
            print(f"{given.clients} clients on {given.queue} slots: {taken:.1f} s, sent away {refused} times")
            print(f"/healthz: {len(health)} asked, median {1000 * np.median(health):.0f} ms, "
                  f"99 % within {1000 * np.quantile(health, 0.99):.0f} ms")  # fmt: skip
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
