"""`densevl serve`: what its options become, and what it says."""

from __future__ import annotations

import gc
import socket
import sys

import pytest
from typer.testing import CliRunner

from densevl.cli import app
from densevl.errors import MissingExtraError, OptionError
from densevl.serving import models, run, stopping
from densevl.serving.settings import Limits, Settings
from serving.server import Slow


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    seen: list[tuple] = []

    def serve(settings, limits, *, host, port, origin, ready):
        seen.append((settings, limits, host, port, origin))
        ready("http://somewhere:1")

    monkeypatch.setattr(run, "serve", serve)
    return seen


def test_options_become_settings_and_limits(calls) -> None:
    given = "--model photo --model mini --recipes sclip,naclip --proposals mini-sam,grid --device cpu,cuda:1 --queue 3"
    more = "--max-body 5 --max-pixels 6 --max-labels 7 --bits 12 --host 0.0.0.0 --port 80 --origin https://a.example"
    done = CliRunner().invoke(app, ["serve", *given.split(), *more.split(), "--refine", "pamr"])
    assert done.exit_code == 0, done.output
    settings, limits, *where = calls[0]
    assert settings == Settings(
        ("photo", "mini"), ("sclip", "naclip"), ("mini-sam", "grid"), ("cpu", "cuda:1"), "float32", "pamr", "winclip"
    )
    assert limits == Limits(queue=3, body=5, pixels=6, labels=7, bits=12)
    assert where == ["0.0.0.0", 80, "https://a.example"]
    assert "densevl serve: http://somewhere:1" in done.stdout
    assert "no password" in done.stderr


def test_left_alone_it_serves_this_machine_and_its_best_model(calls) -> None:
    done = CliRunner().invoke(app, ["serve"])
    assert calls == [(Settings(), Limits(), "127.0.0.1", 8000, None)]
    assert done.stderr == ""


def test_a_port_that_is_taken_is_said_before_models_load() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OptionError, match=f"port {port}.*give another --port"):
            run.serve(Settings(("no such model",)), Limits(), port=port)


def test_missing_packages_are_named_with_their_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"densevl\[serve\]"):
        run.serve(Settings(), Limits())


def test_answers_are_not_held_back_for_the_next_packet() -> None:
    """The kernel otherwise waits up to 40 ms for company; what is accepted inherits the setting."""
    with run._listening("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()[:2]):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_garbage_collector_ignores_models_while_it_serves(monkeypatch) -> None:
    """Otherwise what requests leave in reference cycles grows with the models, and a collection holds all threads."""
    seen: list[int] = []

    def served(server, sockets) -> None:
        seen.extend((gc.get_freeze_count(), len(gc.get_objects())))
        server.service.close()

    monkeypatch.setattr(stopping.Server, "run", served)
    monkeypatch.setattr(models, "Models", lambda settings, device: Slow(0))
    monkeypatch.setattr(run.signal, "signal", lambda number, handler: None)
    before = gc.get_freeze_count()
    run.serve(Settings(), Limits(), port=0)
    frozen, looked_at = seen
    assert frozen > 10_000 > looked_at
    assert bool(gc.get_freeze_count()) == bool(before)
