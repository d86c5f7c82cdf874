"""The table of recipes in README.md is what its command writes from the committed figures."""

from __future__ import annotations

import json

import pytest

from tools import evaluation_tables
from tools.recipes import readme

MEASURED = json.loads(readme.MEASURED.read_text(encoding="utf-8"))


def test_readme_holds_what_the_command_writes() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert readme.replaced(text, readme.block(MEASURED)) == text, "run python -m tools.recipes.readme"


def test_published_and_measured_figures_stand_in_their_columns() -> None:
    rows = [line for line in readme.block(MEASURED).splitlines() if line.startswith("| `")]
    assert len(rows) == len(readme.ROWS)
    sclip = next(row for row in rows if row.startswith("| `sclip`"))
    figure = f"{MEASURED['recipes']['sclip']['miou']:.1f}"
    assert sclip.endswith(f"| 80.4 | 32.2 | 16.1 | {figure} |")


def test_only_what_is_between_the_markers_changes() -> None:
    page = f"above\n{readme.START}\nold\n{readme.END}\nbelow\n"
    assert readme.replaced(page, "NEW") == "above\nNEW\nbelow\n"
    with pytest.raises(SystemExit, match="lacks the markers"):
        readme.replaced("no table", "NEW")


def test_the_tables_of_the_evaluation_page_are_what_their_command_writes() -> None:
    text = evaluation_tables.PAGE.read_text(encoding="utf-8")
    assert evaluation_tables.page(text) == text, "run python -m tools.evaluation_tables"
    assert "| coco | panoptic |" in text
    assert "| `naclip`, refine=pamr |" in text
