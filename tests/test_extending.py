"""The worked changes of docs/extending.md apply to the code as it is, and do what the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
CHECK = """
from typer.testing import CliRunner

from densevl.cli import app
from densevl.evaluation.benchmarks.table import tasks_of
from densevl.regions.operators.names import OPERATORS


def test_they_are_in_their_tables() -> None:
    assert tasks_of("camvid") == ("semantic",)
    assert "surroundings" in OPERATORS


def test_the_command_runs() -> None:
    assert CliRunner().invoke(app, ["colours", "--labels", "cat,dog"]).output.split()[1::2] == ["cat", "dog"]
"""


def test_the_changes_apply_run_and_pass_their_own_tests(tmp_path) -> None:
    for name in ("densevl", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "pyproject.toml", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for diff in re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL):
        done = subprocess.run(["git", "apply", "-"], input=diff, cwd=tmp_path, text=True, capture_output=True)
        assert done.returncode == 0, f"{done.stderr}\nthe code has moved on: renew the diff\n{diff}"
    (tmp_path / "tests" / "test_check.py").write_text(CHECK)
    tests = "tests/test_check.py", "tests/regions/test_surroundings.py", "tests/test_public.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *tests],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": ".", "PYTEST_ADDOPTS": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
