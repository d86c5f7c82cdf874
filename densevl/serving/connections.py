"""HTTP/1.1 on sockets that clients cannot hold open: uvicorn by itself waits forever for a request or a reader."""

from __future__ import annotations

import asyncio
import math
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS = 10.0  # seconds for the headers of a request to arrive, and for some of an answer to be read
REST = 30.0  # seconds for the rest of a request to arrive if it was answered early
IDLE = 256  # connections at once without a running request; the oldest is closed for the next
PIECES = 4000  # of a body, which may have any size
BUSY = (h11.SEND_RESPONSE, h11.SEND_BODY)
PIECE = 256  # average bytes that more pieces must have, since reading one costs the same at any size


class Connection(H11Protocol):
    """Closed if a client is too slow to send or read, sends tiny pieces, or too many others are waiting to send."""

    waiting: ClassVar[dict[Connection, asyncio.TimerHandle]] = {}
    """Connections that wait for their client, oldest first, with the timer of their next check."""

    def __init__(self, *given: Any, **named: Any) -> None:
        """See uvicorn."""
        super().__init__(*given, **named)
        self.conn = _Parser(h11.SERVER, self.conn._max_incomplete_event_size)
        self._unread = math.inf  # unread bytes of an answer at the last check

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
        """Stop the timer once a client has sent its request."""
        super().handle_events()
        if self._at_work():
            self._go_on()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP with an error, unless another answer is being sent."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """Start the timer for reading the answer and sending the next request."""
        super().on_response_complete()
        if self.conn.our_state not in BUSY:  # otherwise the next one has already arrived
            self._wait(REST if self.conn.their_state is h11.SEND_BODY else HEADERS)

    def pause_writing(self) -> None:
        """Start the timer, because the client has not read all of the answer."""
        super().pause_writing()
        self._wait(HEADERS)

    def resume_writing(self) -> None:
        """Stop the timer, because the client has read most of it."""
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
        if 0 < unread < self._unread:  # it is reading, but slowly
            self._wait(HEADERS)
            self._unread = unread
        else:
            self._end()

    def _end(self) -> None:
        self._go_on()
        self.transport.abort() if self.transport.get_write_buffer_size() else self.transport.close()


class _Parser(h11.Connection):
    """Stops reading a body that comes in tiny pieces."""

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
                raise h11.RemoteProtocolError("a body in tiny pieces")
        return event
