"""The code of docs/integrations.md runs in order, and its commands know their options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from densevl.cli import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")


def test_python_blocks_run_in_order(tmp_path, monkeypatch) -> None:
    for package in ("supervision", "segment_anything"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, scope)
    assert scope["asked"].found == ("penguin", "mushroom")
    assert scope["names"].tolist() == [0, 1]
    assert scope["boxes"].keys() == {"boxes", "labels", "scores"}
    assert len(scope["named"]) == len(scope["found"])
    assert (tmp_path / "densevl-out" / "coco.json").is_file()


def test_commands_parse() -> None:
    (console,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in console.splitlines():
        words = shlex.split(line.removeprefix("$ "))
        helped = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"}).output
        assert all(word in helped for word in words if word.startswith("--")), line
