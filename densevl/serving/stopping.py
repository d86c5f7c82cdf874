"""The end of a server: running requests are finished, and later ones get an error."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from densevl.serving.gate import Gate
from densevl.serving.service import Service

DRAIN = 8.0  # seconds until waiting requests get an error; containers often get 10 to stop
GRACE = 30  # seconds until running requests are dropped


class Server(uvicorn.Server):
    """uvicorn, which also tells the gate and the service that it stops."""

    def __init__(self, config: uvicorn.Config, gate: Gate, service: Service) -> None:
        """See uvicorn."""
        super().__init__(config)
        self.gate, self.service = gate, service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called once the process is asked to stop."""
        self.gate.stop()
        asyncio.get_running_loop().call_later(DRAIN, self.service.drop)
        await super().shutdown(sockets)
