"""Connections that ask nothing are closed: uvicorn itself waits for the headers of a request for ever."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS = 10.0  # seconds in which the headers of a request arrive
ASKING = 256  # connections at once that have not asked; the oldest makes room for the next


class Connection(H11Protocol):
    """HTTP/1.1 on a socket, closed when a request's headers take too long, or too many others wait to ask."""

    waiting: ClassVar[dict[Connection, asyncio.TimerHandle]] = {}
    """Those that have not asked, the oldest first, and when each is closed."""

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._wait()
        while len(self.waiting) > ASKING:
            next(iter(self.waiting))._give_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._asked()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """A request whose headers are whole waits no longer."""
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._asked()

    def on_response_complete(self) -> None:
        """The next request on this connection has as long as the first."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._wait()

    def _wait(self) -> None:
        self._asked()
        self.waiting[self] = self.loop.call_later(HEADERS, self._give_up)

    def _asked(self) -> None:
        timer = self.waiting.pop(self, None)
        if timer is not None:
            timer.cancel()

    def _give_up(self) -> None:
        self._asked()
        self.transport.close()
