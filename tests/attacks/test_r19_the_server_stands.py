"""R19: `densevl serve` under crowds, and clients that are slow, that go, and that mean harm."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from densevl.serving import connections, gate, stopping
from densevl.serving.models import Models
from densevl.serving.settings import Settings
from tests.attacks.hostile_requests import ATTACKS, Attack, connected, exchange, form, request, told
from tests.serving.server import Held, Slow, running
from tools.bench_serve import WORDS, photo, resident

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
CROWD = 16  # tools.bench_serve has 64, and tools.attack_server 10 MB a request
TRIPLES = list(combinations(WORDS, 3))
FLAT = 200  # megabytes that memory may grow by: what threads and allocators keep
PID = os.getpid()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server with small limits."""
    models = Models(Settings(("mini",), proposals=("grid",)), "cpu")
    with running(models, queue=2, body=1, pixels=1, labels=20) as (address, _, _):
        yield address


def until(holds: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for a condition, however busy the machine is."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_hostile_request_is_refused_in_one_line(server, attack: Attack) -> None:
    before = resident(PID)
    assert told(attack, exchange(server, attack.data(300_000))) == ""
    assert resident(PID) < before + FLAT
    assert exchange(server, request(form()))[0] == 200


def test_a_body_that_is_too_large_is_told_so_before_it_is_read(server) -> None:
    """Declared, in chunks, and of clients that ask before they send."""
    chunk = b"186A0\r\n" + b"x" * 100_000 + b"\r\n"
    for data in (
        request(b"x" * 1_500_000),
        request(chunk * 15 + b"0\r\n\r\n", headers="Transfer-Encoding: chunked\r\n"),
        request(b"", headers="Expect: 100-continue\r\n").replace(b"Length: 0", b"Length: 9000000"),
    ):
        status, _, body = exchange(server, data)
        assert status == 413
        assert b"larger than 1 MB" in body


# A crowd -------------------------------------------------------------------------------------------------------------


def question(number: int) -> tuple[str, dict[str, Any]]:
    """What the client of this number asks: a route, and its own photo and words."""
    own = ("photo.png", photo(number, (48 + number % 5 * 8, 40 + number % 3 * 8)))
    route = ("segment", "regions", "anomaly", "classify")[number % 4]
    words = {"item": WORDS[number % 3]} if route == "anomaly" else {"labels": ",".join(TRIPLES[number])}
    return f"/v1/{route}", {"files": {"image": own}, "data": words}


def answered(client: httpx.Client, number: int) -> tuple[dict[str, Any], int]:
    """The answer, and how often the client was sent away until it came."""
    route, asked = question(number)
    refused = 0
    while (answer := client.post(route, **asked)).status_code == 503:
        assert answer.json()["error"]["code"] == "busy"
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        refused += 1
        time.sleep(0.25)
    assert answer.status_code == 200, answer.text
    return {key: value for key, value in answer.json().items() if key != "meta"}, refused


@dataclass
class Others:
    """Clients that disturb for as long as they are let. Attributes: slow: answers to whoever sent in crumbs."""

    address: str
    over: threading.Event = field(default_factory=threading.Event)
    health: list[dict[str, Any]] = field(default_factory=list)
    slow: list[int] = field(default_factory=list)
    gone: int = 0

    def watch(self) -> None:
        """Ask for /healthz."""
        with httpx.Client(base_url=self.address, timeout=60) as client:
            while not self.over.is_set():
                self.health.append(client.get("/healthz").raise_for_status().json())
                time.sleep(0.02)

    def dawdle(self) -> None:
        """Send headers and bodies two bytes at a time."""
        while not self.over.is_set():
            self.slow.append(exchange(self.address, request(form()), piece=2, pause=0.001)[0])

    def drop(self, seed: int) -> None:
        """Go in the middle of a request, or right behind it."""
        rng, whole = random.Random(seed), request(form(labels=f"dropped {seed}"))
        while not self.over.is_set():
            with connected(self.address) as own:
                own.sendall(whole[: rng.randrange(len(whole) + 1)])
            self.gone += 1
            time.sleep(0.05)


def files() -> int:
    """How many files and sockets are open."""
    return len(os.listdir(f"/proc/{PID}/fd"))


def test_a_crowd_on_2_slots_gets_its_own_answers_whatever_others_do(server, monkeypatch) -> None:
    monkeypatch.setattr(connections, "HEADERS", 300)  # on a busy machine who sends in crumbs takes long
    monkeypatch.setattr(gate, "PATIENCE", 300)
    with httpx.Client(base_url=server, timeout=120) as client:
        alone = [answered(client, number)[0] for number in range(CROWD)]
    until(lambda: not connections.Connection.waiting)  # all are closed
    opened, before, others = files(), resident(PID), Others(server)
    disturb = [others.watch, others.dawdle, others.dawdle, lambda: others.drop(1), lambda: others.drop(2)]
    with (
        ThreadPoolExecutor(CROWD + len(disturb)) as pool,
        httpx.Client(base_url=server, timeout=120, limits=httpx.Limits(max_connections=CROWD)) as client,
    ):
        at_it = [pool.submit(each) for each in disturb]
        try:
            together = list(pool.map(lambda number: answered(client, number), range(CROWD)))
            until(lambda: others.slow and others.gone > 3)
        finally:
            others.over.set()
        for each in at_it:
            each.result()
    assert [answer for answer, _ in together] == alone
    assert sum(refused for _, refused in together) > 0
    assert set(others.slow) <= {200, 503}
    assert others.health
    assert resident(PID) < before + FLAT
    until(lambda: httpx.get(f"{server}/healthz").json()["running"] == 0)
    until(lambda: files() <= opened)


def test_healthz_answers_while_all_slots_are_busy() -> None:
    models = Held()
    with running(models, queue=2) as (address, _, service), ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(exchange, address, request(form(labels=f"label {number}"))) for number in range(2)]
        until(lambda: service.sites[0][1].load == 2)
        assert httpx.get(f"{address}/healthz").json() == {"status": "ok", "running": 2, "on_devices": 2, "queue": 2}
        assert exchange(address, request(form()))[0] == 503
        models.go.set()
        assert [one.result()[0] for one in asked] == [200, 200]


# Clients that hold on ------------------------------------------------------------------------------------------------


def ended(own: socket.socket) -> bool:
    """Whether the server has closed a connection on which it says nothing."""
    own.settimeout(0.01)
    try:
        while own.recv(2**16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


ASKED = b"GET /page.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
ASKS = 400  # 19 MB


def reader(address: str) -> socket.socket:
    """A client that asks for more than sockets hold, and reads nothing yet."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.settimeout(60)
    parts = urlsplit(address)
    own.connect((parts.hostname, parts.port))
    own.sendall(ASKED * ASKS)
    return own


def all_of(address: str) -> int:
    """Bytes of all that a reader asks for, without headers."""
    return ASKS * len(httpx.get(f"{address}/page.js").content)


def test_a_client_that_reads_nothing_is_let_go(monkeypatch) -> None:
    monkeypatch.setattr(connections, "HEADERS", 0.2)
    lost, close = [], connections.Connection.connection_lost
    with running(Slow(0)) as (address, _, _):
        monkeypatch.setattr(
            connections.Connection,
            "connection_lost",
            lambda self, error: (close(self, error), lost.append(self.client)),
        )
        whole = all_of(address)
        with reader(address) as own:
            until(lambda: own.getsockname() in lost)
            size = 0
            with suppress(OSError):
                while more := own.recv(2**16):
                    size += len(more)
            assert size < whole


def test_a_client_that_reads_slowly_has_all_of_its_answer(monkeypatch) -> None:
    with running(Slow(0)) as (address, _, _):
        whole = all_of(address)
        monkeypatch.setattr(connections, "HEADERS", 1.0)
        with reader(address) as own:
            size = paused = 0
            while size < whole:
                more = own.recv(2**16)
                assert more
                size += len(more)
                if size > whole * paused / 30:
                    time.sleep(0.05)
                    paused += 1


def test_a_client_that_was_refused_and_still_sends_is_let_go(monkeypatch) -> None:
    monkeypatch.setattr(connections, "REST", 0.3)
    with running(Slow(0)) as (address, _, _), connected(address) as own:
        head = request(b"", headers="Origin: https://evil.example\r\n").replace(b"Length: 0", b"Length: 900000")
        own.sendall(head.replace(b"Connection: close\r\n", b""))

        def drips() -> bool:
            try:
                own.send(b"x")
            except OSError:
                return True
            return ended(own)

        until(drips)


def test_slow_bodies_leave_room_for_others(monkeypatch) -> None:
    monkeypatch.setattr(gate, "PATIENCE", 0.1)
    with running(Slow(0), queue=1) as (address, served, _):
        slow = [connected(address) for _ in range(4)]
        for own in slow:
            own.sendall(request(b"").replace(b"Length: 0", b"Length: 900000") + b"x")
        until(lambda: len(served.arriving) == 4)
        time.sleep(0.2)
        assert exchange(address, request(form()))[0] == 200
        assert slow[0].recv(1000).startswith(b"HTTP/1.1 408"), "the one that took longest"
        assert len(served.arriving) == 3
        for own in slow:
            own.close()
        until(lambda: not served.arriving)


def test_slow_bodies_that_have_just_begun_are_not_given_up() -> None:
    with running(Slow(0), queue=1) as (address, served, _):
        slow = [connected(address) for _ in range(4)]
        for own in slow:
            own.sendall(request(b"").replace(b"Length: 0", b"Length: 900000") + b"x")
        until(lambda: len(served.arriving) == 4)
        assert exchange(address, request(form()))[0] == 503
        assert len(served.arriving) == 4
        for own in slow:
            own.close()


# The end -------------------------------------------------------------------------------------------------------------


def test_what_is_begun_is_finished_and_what_waits_is_told_so(monkeypatch) -> None:
    monkeypatch.setattr(stopping, "DRAIN", 0.2)
    models = Held()
    with ThreadPoolExecutor(3) as pool:
        with running(models, queue=3) as (address, served, service):
            asked = [pool.submit(exchange, address, request(form(labels="the first")))]
            until(models.begun.is_set)
            asked += [pool.submit(exchange, address, request(form(labels=f"label {n}"))) for n in range(2)]
            worker = service.sites[0][1]
            until(lambda: worker.load == 3)
            half = connected(address)
            half.sendall(request(b"").replace(b"Length: 0", b"Length: 900000") + b"x")
            until(lambda: len(served.arriving) == 1)

            def let_go() -> None:
                until(lambda: worker.load == 1)  # what waits was dropped while the first is worked on
                models.go.set()

            pool.submit(let_go)
        first, *waited = [one.result() for one in asked]
    assert first[0] == 200
    assert json.loads(first[2])["names"] == ["the first"]
    for status, headers, body in waited:
        assert (status, json.loads(body)["error"]["code"]) == (503, "stopping")
        assert int(headers["retry-after"]) > 0
    assert b"stopping" in half.recv(1000)
    assert models.ran == 1


def test_a_process_that_is_told_to_stop_ends_though_a_request_does_not() -> None:
    command = [sys.executable, "-m", "tests.serving.server", "60", "1"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as own,
        ThreadPoolExecutor(1) as pool,
    ):
        address = own.stdout.readline().strip()
        asked = pool.submit(exchange, address, request(form()))
        until(lambda: httpx.get(f"{address}/healthz").json()["on_devices"] == 1)
        own.send_signal(signal.SIGTERM)
        assert own.wait(40) == 1
        assert asked.result()[0] == 503
        said = own.stderr.read()
    assert "not finished within 1 seconds" in said
    assert "Traceback" not in said
