"""An ASGI layer in front of the app: who may send requests, how large and how many, and the headers of all answers."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
from collections.abc import Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from densevl.devices import give_back
from densevl.serving.counters import Counters
from densevl.serving.settings import MEGABYTE, Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Any]
Send = Callable[[MutableMapping[str, Any]], Any]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
PIECE = 2**16  # bytes of a body passed to the app at once
TIDY = 30.0  # seconds after a request until freed memory is returned to the system
PATIENCE = 3.0  # seconds a request may take to arrive while others find no room
DISCARDED = 4  # times the limit that is read and discarded, so that a client still sending gets the answer
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Refused(Exception):
    """A request that the app never sees. Attributes: status, code, message, headers: of the answer."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        """Create the answer."""
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


INTERNAL = Refused(500, "internal", "something went wrong; see the server's log")
STOPPING = Refused(503, "stopping", "the server is stopping; try again soon", retry_after="5", connection="close")


class Gate:
    """The app with limits in front of it."""

    def __init__(
        self, app: Any, limits: Limits, counters: Counters, routes: Collection[str], *, local: bool, origin: str | None
    ) -> None:
        """Create a gate.

        Args:
            routes: the paths that are counted by name.
            local: serve only this machine, so requests must use its name: any other name is a page elsewhere whose own
                name was pointed here.
            origin: address of a page elsewhere that may send requests, "https://example.org".
        """
        self.app, self.limits, self.counters, self.routes = app, limits, counters, frozenset(routes)
        self.origin = origin
        self.hosts = LOOPBACK | {urlsplit(origin).hostname or ""} if local and origin else LOOPBACK if local else None
        self.running = 0
        self.stopping = False
        self.arriving: dict[asyncio.Timeout, float] = {}  # start times
        self._tidies: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, answer = time.perf_counter(), _Answer(send)
        try:
            await self._serve(scope, receive, answer)
        except Refused as refused:
            await answer.problem(refused)
        except asyncio.CancelledError:  # it took longer than a stopping server waits
            await answer.problem(STOPPING)
        except Exception:
            logging.getLogger(__name__).exception("%s %r", scope["method"], scope["path"])
            await answer.problem(INTERNAL)
        finally:
            route = scope["path"] if scope["path"] in self.routes else "other"
            self.counters.add(route, answer.status, time.perf_counter() - started)

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if self.hosts is not None and _host(f"//{headers.get('host', '')}")[0] not in self.hosts:
            raise Refused(403, "host", "this server answers only this machine; see densevl serve --origin")
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, answer)
            return
        asking = headers.get("origin")
        if asking is not None and asking != self.origin and _host(asking)[1] != headers.get("host"):
            raise Refused(403, "origin", "pages elsewhere may not use this server; see densevl serve --origin")
        if self.stopping:
            raise STOPPING
        if self.running + len(self.arriving) >= 4 * self.limits.queue and not self._make_room():
            raise self._busy()
        body = await self._body(headers, receive)
        if self.running >= self.limits.queue:
            raise self._busy()
        self.running += 1
        answer.begins = self._release  # a client that reads slowly must not hold a place
        try:
            await self._run(scope, body, receive, answer)
        finally:
            answer.begin()

    def stop(self) -> None:
        """Accept no more requests. Those still arriving get an error, and those that have arrived are finished."""
        self.stopping = True
        for timeout in list(self.arriving):
            self._give_up(timeout)

    def _make_room(self) -> bool:
        """Drop the request that has been arriving longest, if that is long enough."""
        oldest = next(iter(self.arriving), None)
        if oldest is None or asyncio.get_running_loop().time() - self.arriving[oldest] <= PATIENCE:
            return False
        self._give_up(oldest)
        return True

    def _give_up(self, timeout: asyncio.Timeout) -> None:
        del self.arriving[timeout]
        if not timeout.expired():
            timeout.reschedule(0)

    def _release(self) -> None:
        self.running -= 1
        if self._tidies is None:
            self._tidies = asyncio.get_running_loop().call_later(TIDY, self._tidy)

    def _tidy(self) -> None:
        """Return freed memory, which `keep_memory` keeps, to the system.

        The heap of each thread otherwise keeps the most that its requests ever took.
        """
        self._tidies = None
        gc.collect()  # fast, as models are ignored: see `run.settled`
        give_back()

    def _busy(self) -> Refused:
        seconds = max(self.counters.mean(route) for route in self.routes)
        return Refused(
            503,
            "busy",
            f"{self.limits.queue} requests are running; try again soon",
            retry_after=str(min(30, max(1, round(seconds)))),
        )

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        """Return a request's whole body.

        Raises:
            Refused: If it is too large or too slow. The rest is read and discarded, because a client whose connection
                closes while it sends sees a reset instead of the answer.
        """
        most = self.limits.body * MEGABYTE
        large = Refused(413, "too_large", f"the request is larger than {self.limits.body} MB", connection="close")
        declared = headers.get("content-length", "0")
        if (int(declared) if declared.isdecimal() else 0) > most and "expect" in headers:
            raise large  # the client waits for permission to send
        parts: list[bytes] = []
        size = 0
        timeout = asyncio.timeout(self.limits.seconds)
        self.arriving[timeout] = asyncio.get_running_loop().time()
        try:
            async with timeout:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(499, "gone", "the client has gone")
                    size += len(message.get("body", b""))
                    if size > DISCARDED * most:
                        raise large
                    if size <= most:
                        parts.append(message.get("body", b""))
                    else:
                        parts.clear()
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            if self.stopping:
                raise STOPPING from None
            if size > most:
                raise large from None
            slow = f"the request did not arrive within {self.limits.seconds} seconds, or others could not wait for it"
            raise Refused(408, "too_slow", slow, connection="close") from None
        finally:
            self.arriving.pop(timeout, None)
        if size > most:
            raise large
        return b"".join(parts)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, answer: _Answer) -> None:
        """Run the app until it is done or the client is gone."""
        left = memoryview(body)

        async def replay() -> dict[str, Any]:
            nonlocal left
            piece, left = left[:PIECE], left[PIECE:]
            await asyncio.sleep(0)  # let other requests run
            return {"type": "http.request", "body": bytes(piece), "more_body": bool(left)}

        work = asyncio.ensure_future(self.app(scope, replay, answer))
        gone = asyncio.ensure_future(receive())  # after a body, only the end of the connection can come
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                answer.status = 499
            await asyncio.wait({work})
            if not work.cancelled():
                work.result()
        finally:
            gone.cancel()
            work.cancel()


def _host(address: str) -> tuple[str, str]:
    """Return the host of an address, and the host with its port; empty if it has none."""
    try:
        parts = urlsplit(address)
        return parts.hostname or "", parts.netloc
    except ValueError:
        return "", ""


class _Answer:
    """A `send` that records what it sent, and adds common headers to all answers. Attributes: begins: see `begin`."""

    def __init__(self, send: Send) -> None:
        self.status = 0
        self.begins: Callable[[], None] | None = None
        self._send = send

    def begin(self) -> None:
        """Call `begins` once."""
        begins, self.begins = self.begins, None
        if begins is not None:
            begins()

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.begin()
            own = {name.lower() for name, _ in message.setdefault("headers", [])}
            added = {**HEADERS, "cache-control": "no-cache" if b"etag" in own else "no-store"}
            pairs = [(name.encode(), value.encode()) for name, value in added.items() if name.encode() not in own]
            message["headers"] = [*message["headers"], *pairs]
        await self._send(message)

    async def problem(self, refused: Refused) -> None:
        """Answer with an error, unless an answer is being sent or the client is gone."""
        if self.status:
            return
        if refused.status == 499:
            self.status = 499
            return
        body = json.dumps({"error": {"code": refused.code, "message": refused.message}}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": refused.status, "headers": pairs})
        await self._send({"type": "http.response.body", "body": body})
