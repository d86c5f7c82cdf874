"""The notebooks of demo/ run from top to bottom, and what their cells end in shows itself."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[1] / "demo"
NOTEBOOKS = sorted((DEMO / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_run_in_order(tmp_path, monkeypatch, notebook) -> None:
    for folder in DEMO.iterdir():
        if folder.is_dir() and folder.name not in ("notebooks", "benchmark"):
            (tmp_path / folder.name).symlink_to(folder)
    for kind in ("images", "labels"):  # two pictures of the benchmark
        (tmp_path / "benchmark" / kind).mkdir(parents=True)
        for path in sorted((DEMO / "benchmark" / kind).iterdir())[:2]:
            (tmp_path / "benchmark" / kind / path.name).symlink_to(path)
    (tmp_path / "benchmark" / "names.txt").symlink_to(DEMO / "benchmark" / "names.txt")
    here = tmp_path / "notebooks"
    here.mkdir()
    monkeypatch.chdir(here)
    scope: dict[str, Any] = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs"), "outputs are not kept"
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, notebook.name, "exec"), scope)
            if isinstance(shown, ast.Expr):
                value = eval(compile(ast.Expression(shown.value), notebook.name, "eval"), scope)
                for show in ("_repr_html_", "_repr_png_"):
                    assert not hasattr(value, show) or getattr(value, show)()


def test_there_is_one_for_each_use() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["1-segment", "2-detector", "3-anomaly", "4-benchmark", "5-recipe"]
