"""The end of a server: what is begun is finished, what would come too late is told so."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from densevl.serving.gate import Gate
from densevl.serving.service import Service

DRAIN = 8.0  # seconds until requests that still wait are told; who stops a container often gives it 10
GRACE = 30  # seconds until requests that are worked on are given up


class Server(uvicorn.Server):
    """uvicorn, which tells those that it will not serve any more."""

    def __init__(self, config: uvicorn.Config, gate: Gate, service: Service) -> None:
        """See uvicorn."""
        super().__init__(config)
        self.gate, self.service = gate, service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called once the process is told to stop."""
        self.gate.stop()
        asyncio.get_running_loop().call_later(DRAIN, self.service.drop)
        await super().shutdown(sockets)
