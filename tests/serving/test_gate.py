"""Limits of the server under real sockets: sizes, slots, clients that go, and the end."""

from __future__ import annotations

import asyncio
import gc
import io
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from densevl import Segmenter
from densevl.results import SegmentationResult
from densevl.serving import connections
from densevl.serving import gate as gates
from densevl.serving.counters import Counters
from densevl.serving.settings import Limits
from serving.server import Held, Slow, running
from serving.test_api import decoded, png

HERE = Path(__file__).parent


def ask(address: str, width: int = 20, **more: object) -> httpx.Response:
    data = {"labels": f"label{width}"}
    return httpx.post(f"{address}/v1/segment", files={"image": png((width, 20))}, data=data, timeout=60, **more)


def test_a_body_that_is_too_large_is_told_so(served) -> None:
    """Whether it says its size or not, and however much still comes."""
    address, large = served[0], b"x" * 1_500_000

    def pieces():
        for _ in range(15):
            yield b"x" * 100_000

    kind = {"content-type": "multipart/form-data; boundary=x"}
    for content in (large, pieces()):
        answer = httpx.post(f"{address}/v1/segment", content=content, headers=kind)
        assert answer.status_code == 413
        assert answer.json()["error"] == {"code": "too_large", "message": "the request is larger than 1 MB"}


def test_a_client_that_asks_before_it_sends_need_not(served) -> None:
    host, port = served[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as own:
        head = f"POST /v1/segment HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9000000\r\nExpect: 100-continue\r\n\r\n"
        own.sendall(head.encode())
        assert own.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_client_that_never_sends_is_not_waited_for() -> None:
    with running(Slow(0), seconds=1) as (address, gate, _):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as own:
            own.sendall(f"POST /v1/segment HTTP/1.1\r\nHost: {host}\r\nContent-Length: 900\r\n\r\nx".encode())
            assert own.recv(1000).startswith(b"HTTP/1.1 408")
        assert not gate.arriving


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"host": "evil.example"}, 403),
        ("GET", {"host": "localhost:1"}, 200),
        ("POST", {"origin": "https://evil.example"}, 403),
        ("POST", {"origin": "null"}, 403),
    ],
    ids=["a name that points here", "this machine", "a page elsewhere", "a page without a place"],
)
def test_pages_elsewhere_cannot_use_the_server(served, method, headers, status) -> None:
    path = "/healthz" if method == "GET" else "/v1/segment"
    assert httpx.request(method, served[0] + path, headers=headers).status_code == status


def test_a_page_elsewhere_that_the_operator_names_may_ask(models) -> None:
    from densevl.serving.app import create_app
    from densevl.serving.service import Service
    from densevl.serving.settings import Limits

    gate = create_app(Service([models], Limits()), origin="https://own.example")

    async def call() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="https://own.example") as client:
            return await client.post("/v1/segment", headers={"origin": "https://own.example"})

    answer = asyncio.run(call())
    assert answer.status_code == 422  # asked, with nothing in it
    assert answer.headers["access-control-allow-origin"] == "https://own.example"


def test_too_many_at_once_are_sent_away_and_told_when_to_come_back() -> None:
    with running(Slow(0.3), queue=4) as (address, gate, _), ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda width: ask(address, width), range(20, 32)))
        found = {code: [a for a in answers if a.status_code == code] for code in (200, 503)}
        assert len(found[200]) + len(found[503]) == 12
        assert len(found[200]) >= 4
        assert found[503]
        for answer in found[503]:
            assert 1 <= int(answer.headers["retry-after"]) <= 30
            assert answer.json()["error"]["code"] == "busy"
        for answer in found[200]:
            width = answer.json()["size"]["width"]
            assert answer.json()["names"] == [f"label{width}"]
        assert httpx.get(f"{address}/healthz").json()["running"] == gate.running == 0


def until(holds) -> None:
    """Wait for a condition, however busy the machine is."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connected(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), 60)


def asking(address: str) -> socket.socket:
    """A connection on which a whole request was sent, and no answer is awaited."""
    request = httpx.Request("POST", f"{address}/v1/segment", files={"image": png()}, data={"labels": "x"})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    own = connected(address)
    own.sendall(f"POST /v1/segment HTTP/1.1\r\n{head}\r\n".encode() + request.read())
    return own


def test_headers_that_never_end_are_not_waited_for(monkeypatch) -> None:
    monkeypatch.setattr(connections, "HEADERS", 0.3)
    with running(Slow(0)) as (address, _, _), connected(address) as half, connected(address) as silent:
        half.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-")
        assert half.recv(1000) == silent.recv(1000) == b""


def test_headers_that_never_end_on_a_connection_that_asked_before_are_not_waited_for(monkeypatch) -> None:
    monkeypatch.setattr(connections, "HEADERS", 0.5)
    with running(Slow(0)) as (address, _, _), connected(address) as own:
        own.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        got = b""
        while b'"queue"' not in got:
            got += own.recv(1000)
        own.sendall(b"GET /healthz HTTP/1.1\r\nHo")
        while own.recv(1000):
            pass


def test_a_slow_answer_is_waited_for(monkeypatch) -> None:
    monkeypatch.setattr(connections, "HEADERS", 0.2)
    with running(Slow(0.6)) as (address, _, _):
        assert ask(address).status_code == 200


def test_a_crowd_that_asks_nothing_keeps_nobody_out(monkeypatch) -> None:
    monkeypatch.setattr(connections, "IDLE", 5)
    with running(Slow(0)) as (address, _, _):
        crowd = [connected(address) for _ in range(40)]
        for each in crowd:
            with suppress(OSError):
                each.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert ask(address).status_code == 200
        until(lambda: len(connections.Connection.waiting) <= 6)
        for each in crowd:
            each.close()


def test_freed_memory_is_returned_a_while_after_requests_but_not_after_each(monkeypatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(gates, "TIDY", 0.01)
    monkeypatch.setattr(gates, "give_back", lambda: given.append(gate.running))
    gate = gates.Gate(None, Limits(), Counters(), [], local=True, origin=None)

    async def four_end() -> None:
        gate.running = 4
        for times in (1, 2):
            gate._release()
            gate._release()
            assert len(given) == times - 1
            await asyncio.sleep(0.1)
            assert len(given) == times
        await asyncio.sleep(0.1)
        assert given == [2, 0]

    asyncio.run(four_end())


def test_a_client_that_goes_frees_its_place() -> None:
    models = Held()
    with running(models, queue=3) as (address, gate, service), ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, address, 20)
        until(models.begun.is_set)
        others = [asking(address), asking(address)]  # they wait behind the first, and go
        worker = service.sites[0][1]
        until(lambda: worker.load == 3)
        for other in others:
            other.close()
        until(lambda: gate.counters.requests["/v1/segment", 499] == 2)
        models.go.set()
        assert first.result().status_code == 200
        assert ask(address, 23).status_code == 200
        assert models.ran == 2, "what nobody waits for is not computed"
        until(lambda: gate.running == worker.load == 0)


def test_a_client_that_goes_while_its_photo_is_worked_on_holds_its_place_till_then() -> None:
    models = Held()
    with running(models, queue=1) as (address, gate, _):
        own = asking(address)
        until(models.begun.is_set)
        own.close()
        assert ask(address).status_code == 503
        assert gate.running == 1
        models.go.set()
        until(lambda: gate.running == 0)
        assert ask(address).status_code == 200


def test_a_process_that_is_told_to_stop_finishes_what_it_has() -> None:
    command = [sys.executable, "-m", "serving.server", "0.4", "30"]
    with subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, address, width) for width in range(20, 24)]
            deadline = time.monotonic() + 20
            while httpx.get(f"{address}/healthz").json()["running"] < 4 and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            answers = [one.result() for one in asked]
        assert [a.status_code for a in answers] == [200] * 4
        assert process.wait(20) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/healthz")


def test_what_was_answered_is_forgotten_but_for_the_last() -> None:
    """A leak of one result a request; of resident memory see tools.soak."""

    def alive() -> int:
        gc.collect()
        return sum(isinstance(each, SegmentationResult) for each in gc.get_objects())

    before = alive()
    with running(Slow(0), kept=4) as (address, _, _), httpx.Client(base_url=address, timeout=60) as client:
        for width in range(20, 80):
            answer = client.post("/v1/segment", files={"image": png((width, 20))}, data={"labels": f"label{width}"})
            assert answer.json()["size"]["width"] == width
        until(lambda: alive() <= before + 4)


@pytest.mark.parametrize("slots", [2, 64])
def test_64_clients_get_their_own_answers_bit_for_bit(models, slots) -> None:
    """With 2 slots they come again until they are let in; with 64 their windows share passes."""
    draw = np.random.default_rng(7)
    words = ["cat", "dog", "pizza", "house", "boat", "penguin", "ball", "car"]
    asked = []
    for number in range(64):
        pixels = draw.integers(0, 256, (6, 8, 3), np.uint8)
        size = (64 + number % 5 * 16, 48 + number % 3 * 24)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
        asked.append((buffer.getvalue(), [words[number % 8], f"thing {number}"]))

    async def all_of(address: str) -> tuple[list[httpx.Response], int]:
        refused = 0

        async def one(client: httpx.AsyncClient, image: bytes, labels: list[str]) -> httpx.Response:
            nonlocal refused
            while True:
                answer = await client.post("/v1/segment", files={"image": image}, data={"labels": ",".join(labels)})
                if answer.status_code != 503:
                    return answer
                refused += 1
                await asyncio.sleep(0.05)

        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(one(client, *each) for each in asked)), refused

    with running(models, queue=slots) as (address, _, service):
        answers, refused = asyncio.run(all_of(address))
        worker = service.sites[0][1]
    assert (refused > 0) == (slots == 2)
    if slots == 64:
        assert worker.shared / worker.passes > 1
    library = Segmenter(models.backbones["mini"])
    for answer, (image, labels) in zip(answers, asked, strict=True):
        want = library(image, labels)
        numbers, steps = decoded(answer.json()["map"])
        assert answer.json()["names"] == labels
        assert np.array_equal(numbers, want.labels)
        assert np.array_equal(steps, np.rint(want.confidence * 255))


def test_the_policy_allows_nothing_of_another_host() -> None:
    assert "http" not in gates.POLICY
    assert "*" not in gates.POLICY


def test_requests_go_to_the_device_with_the_least_to_do() -> None:
    from densevl.serving.service import Service
    from densevl.serving.settings import Limits

    devices = [Slow(0.2), Slow(0.2)]
    service = Service(devices, Limits())

    async def both() -> None:
        asked = [((png((20 + n, 20)), "a.png"), "cat", "", "", "", "", "", "json") for n in range(4)]
        await asyncio.gather(*(service.segment(*one) for one in asked))

    asyncio.run(both())
    service.close()
    assert [models.ran for models in devices] == [2, 2]
