"""Shared code of `densevl eval` commands: options, and the experiment that they and WHAT describe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densevl.cli import options
from densevl.cli.images import WINDOWS, text_options
from densevl.cli.shared import print_json, stdout
from densevl.errors import OptionError

if TYPE_CHECKING:
    from densevl.evaluation import Experiment

BENCHMARK, RUN = "Benchmark", "Run"

What = Annotated[
    str,
    typer.Argument(
        help="A benchmark that `densevl eval list` names, or a config: a .yaml, .json or .toml file.",
        show_default=False,
    ),
]
Root = Annotated[
    Path | None,
    options.option(
        "Set the folder of the benchmark. If left out, $DENSEVL_DATA, ./data and the cache are searched.",
        panel=BENCHMARK,
    ),
]
Task = Annotated[
    str | None,
    options.option(
        "Choose what is predicted: semantic (a class for each pixel), instance (objects), panoptic (both), or "
        "anomaly. The benchmark's first task if left out.",
        panel=BENCHMARK,
        values=("semantic", "instance", "panoptic", "anomaly"),
    ),
]
Limit = Annotated[int | None, options.option("Use only this many images, spread evenly.", panel=BENCHMARK, min=1)]
Ignore = Annotated[
    str,
    options.option(
        "For your own folder: ignore these label numbers, separated by commas, or 'others' for all that belong to no "
        "class. 255 and 65535 if left out.",
        panel=BENCHMARK,
    ),
]
Bits = Annotated[
    int | None, options.option("Say how many of their 16 bits the images use.", panel=BENCHMARK, min=8, max=16)
]
Changes = Annotated[
    list[str] | None,
    options.option(
        "Change any field of the config: limit=20, protocol.crop=336. May be given several times.",
        "--set",
        panel=RUN,
        metavar="FIELD=VALUE",
    ),
]
Trust = Annotated[
    bool,
    options.option(
        "Run a config that is a Python program, or names one. It can do whatever you can, so read it first.",
        "--trust-config",
        panel=RUN,
    ),
]
OUT = "densevl-out/eval"


def experiment(ctx: typer.Context, what: str = "", **settings: Any) -> Experiment:
    """Build the experiment from WHAT (or `what`) and the options given; others are the config's."""
    from dataclasses import fields

    from densevl.evaluation import Experiment
    from densevl.evaluation.config import is_config, load_experiment, merged, parse_change

    def is_given(name: str) -> bool:
        source = ctx.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    given = {name: value for name, value in ctx.params.items() if is_given(name)}
    settings |= {entry.name: given[entry.name] for entry in fields(Experiment) if entry.name in given}
    if "ignore" in given:
        settings["ignore"] = numbers(given["ignore"])
    if "measures" in given:
        settings["measures"] = [name.strip() for name in given["measures"].split(",")]
    if word_options := text_options(given):
        settings["text"] = word_options
    if windows := {name: given[name] for name in WINDOWS if name in given}:
        settings["protocol"] = {**windows, **({"crop": windows["crop"] or None} if "crop" in windows else {})}
    for text in given.get("changes", ()):
        settings = merged(settings, parse_change(text))
    what = what or given["what"]
    if is_config(what):
        return load_experiment(what, settings, trust=ctx.params["trust"])
    if settings.get("dataset", what) != what:
        raise OptionError(f"--set dataset={settings['dataset']} contradicts {given['what']!r}; leave it out")
    return Experiment.parse({"dataset": what, **settings})


def numbers(text: str) -> list[int | str]:
    """Parse numbers separated by commas. Words are kept."""
    return [int(part) if part.isdecimal() else part for part in map(str.strip, text.split(","))]


def say(facts: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Print facts as a line of JSON, or a text."""
    if as_json:
        print_json(dict(facts))
    else:
        stdout().print(text, markup=False, emoji=False)
