"""HTTP/1.1 on sockets that nobody else can hold: uvicorn itself waits for a request, or a reader, for ever."""

from __future__ import annotations

import asyncio
import math
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS = 10.0  # seconds in which the headers of a request arrive, and in which some of an answer is read
REST = 30.0  # seconds in which the rest of a request arrives that was answered before it was whole
IDLE = 256  # connections at once on which no request is worked on; the oldest makes room for the next
PIECES = 4000  # of a body that may be of any size
BUSY = (h11.SEND_RESPONSE, h11.SEND_BODY)
PIECE = 256  # bytes that further ones have on average: each costs as much to read, however small it is


class Connection(H11Protocol):
    """Closed when a client takes too long to ask or to read, asks in crumbs, or when too many others wait to ask."""

    waiting: ClassVar[dict[Connection, asyncio.TimerHandle]] = {}
    """Those that wait for their client, the oldest first, and when each is looked at again."""

    def __init__(self, *given: Any, **named: Any) -> None:
        """See uvicorn."""
        super().__init__(*given, **named)
        self.conn = _Parser(h11.SERVER, self.conn._max_incomplete_event_size)
        self._unread = math.inf  # bytes of an answer that were not read when it was last looked

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._wait(HEADERS)
        while len(self.waiting) > IDLE:
            next(iter(self.waiting))._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._go_on()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """A client that has asked is not waited for."""
        super().handle_events()
        if self._at_work():
            self._go_on()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so, unless another answer is under way."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """The answer is to be read, and the next request has as long as the first."""
        super().on_response_complete()
        if self.conn.our_state not in BUSY:  # else the next one had come already
            self._wait(REST if self.conn.their_state is h11.SEND_BODY else HEADERS)

    def pause_writing(self) -> None:
        """An answer is larger than what the client has read of it."""
        super().pause_writing()
        self._wait(HEADERS)

    def resume_writing(self) -> None:
        """It has read most."""
        super().resume_writing()
        if self._at_work():
            self._go_on()

    def _at_work(self) -> bool:
        return self.conn.our_state in BUSY and not self.flow.write_paused

    def _wait(self, seconds: float) -> None:
        self._go_on()
        self.waiting[self] = self.loop.call_later(seconds, self._look)

    def _go_on(self) -> None:
        self._unread = math.inf
        timer = self.waiting.pop(self, None)
        if timer is not None:
            timer.cancel()

    def _look(self) -> None:
        unread = self.transport.get_write_buffer_size()
        if 0 < unread < self._unread:  # it reads, slowly
            self._wait(HEADERS)
            self._unread = unread
        else:
            self._end()

    def _end(self) -> None:
        self._go_on()
        self.transport.abort() if self.transport.get_write_buffer_size() else self.transport.close()


class _Parser(h11.Connection):
    """Ends a body that comes in crumbs."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._pieces = self._size = 0

    def next_event(self) -> Any:
        """See h11."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._size = 0
        elif isinstance(event, h11.Data):
            self._pieces, self._size = self._pieces + 1, self._size + len(event.data)
            if self._pieces > PIECES and self._size < PIECE * self._pieces:
                raise h11.RemoteProtocolError("a body in crumbs")
        return event
