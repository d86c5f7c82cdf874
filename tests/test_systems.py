"""Commands in the table of systems are commands, with options that they have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from densevl.cli import app
from densevl.recipes import get
from densevl.regions.operators.names import OPERATORS

PAGE = Path(__file__).parents[1] / "docs" / "systems.md"
DENSEVL = typer.main.get_command(app)
COMMANDS = sorted(set(re.findall(r"`densevl ([^`]+)`", PAGE.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("text", COMMANDS)
def test_a_system_is_reached_by_the_command_that_the_table_names(text) -> None:
    words = text.split()
    command = DENSEVL.commands[words[0]]
    while hasattr(command, "commands") and len(words) > 1 and words[1] in command.commands:
        command = command.commands[words.pop(1)]
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known
    if "--recipe" in words:
        get(words[words.index("--recipe") + 1])
    if "--operator" in words:
        assert words[words.index("--operator") + 1] in OPERATORS
