"""The `densevl` command: thin, without logic. Torch is imported only by commands that run a model.

Exit codes: 0 all done; 1 a check failed; 2 one clear line says what is wrong; 3 some images failed, not all; 4 results
cannot be written there; 130 stopped by Ctrl-C; 141 the reader of the output has closed it.
"""

from __future__ import annotations

import gc
import io
import sys
from typing import Annotated

import typer

from densevl import __version__
from densevl.cli.anomaly import anomaly_app
from densevl.cli.bank import bank_app
from densevl.cli.bench import bench
from densevl.cli.classify import classify
from densevl.cli.config import defaults
from densevl.cli.dense.features import features
from densevl.cli.dense.points import points
from densevl.cli.evaluation import eval_app
from densevl.cli.explaining.commands import explain_app
from densevl.cli.export import export_app
from densevl.cli.fewshot import fewshot_app
from densevl.cli.listing import doctor, recipes_app
from densevl.cli.measure.tune import tune
from densevl.cli.models import models_app
from densevl.cli.regions import regions
from densevl.cli.search import search
from densevl.cli.segmentation import segment
from densevl.cli.serve import serve
from densevl.cli.shared import OneLineGroup, configured_by, note, one_line_errors, tell_notes
from densevl.cli.video import video
from densevl.devices import keep_memory
from densevl.files import shown

__all__ = ["app"]

app = typer.Typer(
    cls=OneLineGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Open-vocabulary dense prediction.",
    epilog="To have the Tab key complete names of models, recipes and options: densevl --install-completion",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"densevl {__version__}")
        raise typer.Exit


@app.callback()
@one_line_errors
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Read defaults from a TOML file: a table for each command, such as [segment], with its options.",
        ),
    ] = None,
) -> None:
    """Open-vocabulary dense prediction: name labels, get masks, without training."""
    gc.set_threshold(20_000, 20, 20)  # imports leave no garbage, and searching for it takes a tenth of torch's import
    for stream in (sys.stdout, sys.stderr):  # a name the terminal cannot show must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    tell_notes()
    keep_memory()
    configured_by(config)
    if config is not None:
        context.default_map = defaults(config, context.command)
        if context.invoked_subcommand not in context.default_map:
            note(f"{shown(config)} has no [{context.invoked_subcommand}]")


for command in (segment, video, regions, search, classify, features, points, doctor, bench, tune, serve):
    app.command()(command)
for name, group in (
    *(("recipes", recipes_app), ("anomaly", anomaly_app), ("fewshot", fewshot_app), ("eval", eval_app)),
    ("explain", explain_app),
    ("export", export_app),
    ("models", models_app),
    ("bank", bank_app),
):
    app.add_typer(group, name=name)
