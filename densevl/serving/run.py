"""The server as a process: a socket, the models, and uvicorn until it is stopped."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

from densevl.errors import MissingExtraError, OptionError
from densevl.serving.settings import Limits, Settings

CONNECTIONS = 1000  # at once; further ones are refused unread


def serve(
    settings: Settings,
    limits: Limits,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    origin: str | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until SIGINT or SIGTERM; see `stopping`. If a request does not end, the process exits with code 1.

    Args:
        settings: what is offered. limits: of requests. port: 0 takes a free one. origin: see `Gate`.
        ready: called with the address once the models are loaded.

    Raises:
        MissingExtraError: If the packages of the extra are not installed.
        OptionError: If the address cannot be used.
        DensevlError: If a model cannot be loaded.
    """
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve", "densevl serve") from error
    if origin is not None and (not origin.startswith(("http://", "https://")) or urlsplit(origin).path):
        raise OptionError(f"origin is {origin!r}; it must be a scheme and a host, such as https://example.org")
    with _listening(host, port) as listening:  # before models are loaded, which takes a while
        from densevl.serving.app import create_app
        from densevl.serving.connections import Connection
        from densevl.serving.models import Models
        from densevl.serving.service import Service
        from densevl.serving.stopping import GRACE, Server

        service = Service([Models(settings, device) for device in settings.devices], limits)
        app = create_app(service, local=is_local(host), origin=origin)
        config = uvicorn.Config(
            app,
            http=Connection,
            log_level="warning",
            ws="none",
            limit_concurrency=CONNECTIONS,
            server_header=False,
            timeout_graceful_shutdown=GRACE,
            lifespan="on",
        )
        place, number = listening.getsockname()[:2]
        ready(f"http://{f'[{place}]' if ':' in place else place}:{number}")
        signal.signal(signal.SIGTERM, lambda number, frame: None)  # uvicorn raises the signal again after stopping
        with settled(), suppress(KeyboardInterrupt):
            Server(config, app, service).run(sockets=[listening])
        if not all(worker.ended(1) for _, worker in service.sites):
            logging.getLogger(__name__).error("a request was not finished within %d seconds and is dropped", GRACE)
            os._exit(1)  # a computing thread cannot be stopped otherwise: Python would abort


@contextmanager
def settled() -> Iterator[None]:
    """Within, the garbage collector ignores the objects that exist at the start: models and modules, which stay.

    A full collection is due when there are a quarter more old objects. If models counted, requests would leave up to
    100,000 objects in reference cycles until then, and all threads would wait while it visits every object.
    """
    frozen = gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:  # the caller's own stay frozen
            gc.unfreeze()


def is_local(host: str) -> bool:
    """Return whether a host is only this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(place[:2], family=family, backlog=2048)
        # asyncio sets this only on sockets that name their protocol, unlike create_server's: answers would take 40 ms
        # more.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"cannot listen on {host}, port {port}: {reason}; give another --port or --host") from error
