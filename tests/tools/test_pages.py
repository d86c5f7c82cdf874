"""Generated parts of pages are what their commands write."""

from __future__ import annotations

import pytest

from tools import evaluation_tables, extras, forms
from tools.pages import replaced


@pytest.mark.parametrize("tool", [evaluation_tables, extras], ids=lambda tool: tool.__name__)
def test_the_page_holds_what_its_command_writes(tool) -> None:
    text = tool.PAGE.read_text(encoding="utf-8")
    assert tool.page(text) == text, f"run python -m {tool.__name__}"


def test_the_evaluation_page_has_rows_of_all_kinds() -> None:
    text = evaluation_tables.PAGE.read_text(encoding="utf-8")
    assert "| coco | panoptic |" in text
    assert "| `naclip`, refine=pamr |" in text


def test_only_what_is_between_the_markers_changes() -> None:
    page = "above\n<a>\nold\n</a>\nbelow\n"
    assert replaced(page, "NEW", "<a>", "</a>") == "above\nNEW\nbelow\n"
    with pytest.raises(SystemExit, match="lacks the markers"):
        replaced("no table", "NEW", "<a>", "</a>")


def test_every_form_has_a_row_of_figures() -> None:
    text = forms.PAGE.read_text(encoding="utf-8").partition(forms.START)[2].partition(forms.END_MARK)[0]
    found = [line.split(" | ")[:2] for line in text.splitlines()[3:]]
    assert found == [[f"| {row.form}", row.saved] for row in forms.ROWS.values()], "run python -m tools.forms --write"
