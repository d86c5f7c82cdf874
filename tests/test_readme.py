"""The README's own code and commands work as they stand."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

import densevl
from conftest import TINY, random_clip
from densevl.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def tiny_is_auto(tmp_path, monkeypatch) -> None:
    """Make "auto" a tiny model, so that the README runs wherever the tests do."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    save_file({k: v.contiguous() for k, v in random_clip().state_dict().items()}, tmp_path / "model.safetensors")
    monkeypatch.setattr("densevl.backbones.load.best_at_hand", lambda: str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(ROOT / "demo")


def test_python_blocks_run_in_order(tiny_is_auto) -> None:
    scope: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, scope)
    assert isinstance(scope["result"], densevl.SegmentationResult)
    assert Path("densevl-out/cat_overlay.png").is_file()


def test_commands_parse() -> None:
    console = re.search(r"```console\n(.*?)```", README, re.DOTALL)
    assert console is not None
    for line in console.group(1).splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        assert words[0] == "densevl"
        command = words[1:3] if words[1] in ("anomaly", "eval") else words[1:2]
        options = {word for word in words if word.startswith("--")}
        helped = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
        assert helped.exit_code == 0
        known = helped.output
        assert all(option in known for option in options), (line, known)


def test_the_table_has_the_published_figures() -> None:
    rows = dict(re.findall(r"\| `(\w+)` \|(.*)\|\n", README.partition("## Recipes")[2].partition("##")[0]))
    assert len(rows) > 10
    for name, row in rows.items():
        figures = [cell.strip() for cell in row.split("|")][1:4]
        source = densevl.recipes.get(name).source
        want = [source.miou.get(key) for key in ("voc20", "cityscapes", "ade150")]
        assert figures == ["" if value is None else f"{value:g}" if value % 1 else f"{value:.1f}" for value in want]


def test_the_demo_script_runs(tiny_is_auto, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["segment_image.py"])
    exec(
        compile((ROOT / "demo/segment_image.py").read_text(), str(ROOT / "demo/segment_image.py"), "exec"),
        {"__file__": str(ROOT / "demo/segment_image.py")},
    )
    assert "cat" in capsys.readouterr().out
