"""Shared options: what the Tab key offers exists, comes without torch, and completion does not clutter the help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from densevl.cli import app, options

ASK = """
import sys
from densevl.cli import app
try:
    app(prog_name="densevl")
finally:
    sys.stderr.write(str("torch" in sys.modules))
"""


def test_what_is_offered_is_what_there_is() -> None:
    from densevl.anomaly.scoring import get_scoring
    from densevl.backbones.at_hand import PHOTO_NAMES, PREFERRED
    from densevl.backbones.precision import AUTO, PRECISIONS
    from densevl.backbones.protocol import BLENDS
    from densevl.backbones.proxies import known_proxies
    from densevl.cli import fewshot
    from densevl.evaluation import Experiment
    from densevl.fewshot import HEADS
    from densevl.inference.views import Views
    from densevl.pipelines.explanation.explainer import BLOCKS, TEXT_BLOCK
    from densevl.pipelines.features.extractor import PATCH
    from densevl.pipelines.features.result import DTYPES, FORMATS
    from densevl.pipelines.feeding import PLANS
    from densevl.pipelines.points.cameras import CONVENTIONS
    from densevl.pipelines.points.labeller import TOLERANCE
    from densevl.pipelines.segmentation import bank
    from densevl.pipelines.segmentation.refinement import KNOWN
    from densevl.regions.operators.names import OPERATORS
    from densevl.vocabulary import Background
    from densevl.vocabulary.options import CHOICES
    from densevl.weights import SUFFIXES, hub
    from densevl.weights.facts import ACTIVATIONS
    from densevl.weights.published import told

    for name, hub_id in PREFERRED.items():
        assert told(*name.split("/"))["hf_hub"] == hub_id
    assert options.ELSEWHERE == hub.PREFIX
    assert ("auto", PHOTO_NAMES[0], "mini", *PREFERRED) == options.MODELS
    assert ((*PRECISIONS, AUTO), BLENDS, KNOWN) == (options.PRECISIONS, options.BLENDS, options.REFINEMENTS)
    assert (set(options.PLANS), options.OPERATORS) == (set(PLANS), tuple(OPERATORS))
    assert (ACTIVATIONS, (*SUFFIXES, ".json")) == (options.ACTIVATIONS, options.WEIGHTS)
    assert (options.BANK_SHARE, options.NEIGHBOURS) == (bank.SHARE, bank.NEIGHBOURS)
    assert (Experiment("voc21").bank_share, Experiment("voc21").neighbours) == (bank.SHARE, bank.NEIGHBOURS)
    assert (CHOICES["template_weights"], CHOICES["parents"]) == (options.TEMPLATE_WEIGHTS, options.PARENTS)
    assert (tuple(FORMATS), DTYPES, PATCH) == (options.MAPS, options.MAP_DTYPES, options.CELL)
    assert (str(BLOCKS), TEXT_BLOCK) == (options.BLOCKS, options.TEXT_BLOCK)
    assert (options.CONVENTIONS, options.TOLERANCE) == (CONVENTIONS, TOLERANCE)
    assert set(options.PROXIES) <= set(known_proxies())
    assert set(fewshot.HEADS) == set(HEADS)
    for name in options.SCORINGS:
        assert get_scoring(name).name == name
    for name in options.VIEWS:
        assert Views.parse(name) is not None
    for name in options.BACKGROUNDS[1:]:
        Background.parse(name)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("segment --recipe na", {"naclip"}),
        ("segment --model ViT-L", {"ViT-L-14/openai", "ViT-L-14-336/openai"}),
        ("segment --precision i", {"int8"}),
        ("segment --plan s", {"sliding"}),
        ("segment --refine pamr,v", {"pamr,vote"}),
        ("regions --proposals m", {"mini-sam"}),
        ("anomaly fit --scoring w", {"winclip"}),
    ],
)
def test_the_tab_key_completes_without_torch(words, offered) -> None:
    line = f"densevl {words}"
    asked = {"_DENSEVL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert set(done.stdout.split()) == offered
    assert done.stderr == "False"


def test_the_help_of_every_command_is_what_was_written() -> None:
    found = []

    def walk(command: Any, path: list[str]) -> None:
        for parameter in command.params:
            written = getattr(parameter, "help", None) or ""
            found.extend((path, part) for part in re.findall(r"\[[a-zA-Z/][^\]\[]*\]", written))
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, [*path, name])
        done = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})
        assert done.exit_code == 0, (path, done.exception)
        assert all(part in done.output for place, part in found if place == path), path

    walk(typer.main.get_command(app), [])
    assert ([], "[segment]") in found


def test_completion_is_there_and_out_of_the_way() -> None:
    assert "install-completion" not in CliRunner().invoke(app, ["segment", "--help"]).output
    shown = CliRunner().invoke(app, ["--help"]).output
    assert shown.count("install-completion") == 1, "said once, below the commands"
    assert "--show-completion" not in shown


@pytest.mark.parametrize("command", [["segment"], ["regions"], ["search"], ["anomaly", "fit"], ["anomaly", "score"]])
def test_every_command_that_loads_a_model_has_the_same_options(command) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
    for name in ("--model", "--weights", "--device", "--precision", "--recipe", "--out"):
        assert f" {name} " in shown, name


@pytest.mark.parametrize(
    ("value", "taken"),
    [("hf-hub:org/repo", True), ("s3://bucket/x.pt", True), (__file__, True), ("no.such", False), ("C:no.such", False)],
)
def test_files_that_lie_elsewhere_are_not_looked_for_here(value, taken) -> None:
    asked = typer.Typer()

    @asked.command()
    def load(weights: options.Weights = None) -> None:
        """Take it."""

    done = CliRunner().invoke(asked, ["--weights", value])
    assert (done.exit_code == 0) == taken, done.output


def test_no_path_is_an_empty_string() -> None:
    """It would be the working folder, and an empty variable of a script would read or write there in silence."""

    def leaves(command: Any, words: list[str]) -> list[tuple[list[str], Any]]:
        inner = getattr(command, "commands", {})
        return [pair for name in inner for pair in leaves(inner[name], [*words, name])] if inner else [(words, command)]

    asked = 0
    for words, command in leaves(typer.main.get_command(app), []):
        for param in command.params:
            if "Path" in str(param.type_descriptor.annotation) and param.param_type_name == "option":
                done = CliRunner().invoke(app, [*words, param.opts[0], ""])
                assert (done.exit_code, "it is empty" in done.stderr) == (2, True), (words, param.opts, done.stderr)
                asked += 1
    assert asked > 20
