"""docs/speed.md is what its JSON says, and the bars it is quoted for hold in it."""

from __future__ import annotations

import json

import pytest

from tools.speed_page import JSON, PAGE, markdown


def test_the_page_is_written_from_the_figures() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(json.loads(JSON.read_text(encoding="utf-8")))


@pytest.mark.parametrize("part", ["bare", "compile", "protocol", "vocabulary", "plans", "recipes", "quality"])
def test_every_part_was_measured(part) -> None:
    assert json.loads(JSON.read_text(encoding="utf-8"))[part]
