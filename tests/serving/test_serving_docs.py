"""The requests that docs/serve.md shows, sent to a server on another port."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import PHOTOS

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"
BLOCK = re.compile(r"<!-- needs: network, the server of above -->\n```(\w+)\n(.*?)```", re.DOTALL)


@pytest.fixture
def blocks(served, tmp_path, monkeypatch) -> list[tuple[str, str]]:
    shutil.copy(PHOTOS / "cat.jpg", tmp_path)
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8").replace("http://127.0.0.1:8000", served[0])
    return BLOCK.findall(text)


def test_python_blocks_read_the_answer(blocks) -> None:
    scope: dict[str, Any] = {}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), scope)
    assert set(np.unique(scope["labels"])) <= {0, 1, 65535}
    assert 0 <= scope["confidence"].min() <= scope["confidence"].max() <= 1


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_commands_get_an_answer(blocks) -> None:
    lines = [line[2:] for kind, text in blocks if kind == "console" for line in text.splitlines()]
    assert lines
    for line in lines:
        subprocess.run([*shlex.split(line), "--fail", "--silent", "--noproxy", "*"], check=True, capture_output=True)
