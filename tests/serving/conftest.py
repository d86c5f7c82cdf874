"""One model for all tests of the server."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

from serving.server import mini, running


@pytest.fixture(scope="session")
def models():
    return mini()


@pytest.fixture(scope="session")
def served(models):
    """A server: address, gate and service."""
    with running(models, body=1, pixels=1, labels=20, normal=2, prompts=5) as found:
        yield found
