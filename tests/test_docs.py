"""Every code block and command of README.md and docs/ runs as it stands, or says above it why it does not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import densevl.recipes
from densevl.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REASONS = ("network", "weights", "data", "package", "GPU", "minutes", "part")
"""What a block that is not run may need; "part" is a piece of somebody else's code."""
BLOCK = re.compile(
    r"(?:<!-- (?:needs: (?P<needs>[\w, ]+)|file: (?P<file>[\w./]+)) -->\n+)?```(?P<kind>\w*)\n(?P<text>.*?)```",
    re.DOTALL,
)
SCOPES: dict[str, dict[str, Any]] = {"recipes.md": vars(densevl.recipes)}
"""Names that a generated page takes for granted."""


def _integrations(scope: dict[str, Any]) -> None:
    assert scope["asked"].found == ("penguin", "mushroom")
    assert scope["names"].tolist() == [0, 1]
    assert scope["boxes"].keys() == {"boxes", "labels", "scores"}
    assert len(scope["named"]) == len(scope["found"])
    assert Path("densevl-out/coco.json").is_file()


SHOWN: dict[str, Callable[[dict[str, Any]], None]] = {"integrations.md": _integrations}
"""What the names that a page leaves hold, where it says so."""


def _blocks(page: Path, kind: str) -> list[re.Match[str]]:
    return [block for block in BLOCK.finditer(page.read_text(encoding="utf-8")) if block["kind"] == kind]


@pytest.fixture
def clone(tmp_path, monkeypatch, page) -> None:
    """A folder with what a clone has and the files that the page tells to write; nothing written there hurts."""
    for name in ("demo", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    scenes = tmp_path / "data" / "benchmark" / "scenes"  # in place of `python -m tools.render benchmark`
    for folder in ("images", "labels"):
        (scenes / folder).mkdir(parents=True)
    (scenes / "names.txt").write_text("background\npenguin\npizza\n")
    for scene in sorted((ROOT / "demo" / "scenes").glob("*.png")):
        (scenes / "images" / scene.name).symlink_to(scene)
        size = Image.open(scene).size
        Image.linear_gradient("L").point(lambda grey: grey // 86).resize(size).save(scenes / "labels" / scene.name)
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["file"]:
            (tmp_path / block["file"]).write_text(block["text"])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_that_are_not_run_say_what_they_need(page) -> None:
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["needs"]:
            assert block["needs"].split(",")[0].strip() in REASONS, block[0]


@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run_in_order(clone, page) -> None:
    scope = dict(SCOPES.get(page.name, {}))
    for block in _blocks(page, "python"):
        if not block["needs"]:
            exec(compile(block["text"], f"{page.name}: {block['text'][:60]!r}", "exec"), scope)
    SHOWN.get(page.name, lambda _: None)(scope)


@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page, "console")], ids=lambda page: page.name)
def test_commands_run(clone, page) -> None:
    for block in _blocks(page, "console"):
        if block["needs"]:
            continue
        for line in block["text"].splitlines():
            if not line.startswith("$ "):
                continue  # what the command prints
            words = shlex.split(line.removeprefix("$ "), comments=True)
            assert words[0] == "densevl", f"{line}: only densevl's own commands are run; say what others need"
            done = CliRunner().invoke(app, words[1:])
            assert done.exit_code == 0, (line, done.output, done.exception)


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").split()) < 900
