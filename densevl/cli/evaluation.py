"""The `densevl eval` commands, thin: check, run, compare and analyse benchmarks. Torch is imported when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densevl.cli import options
from densevl.cli.measure.analyse import analyse
from densevl.cli.measure.experiments import (
    BENCHMARK,
    OUT,
    RUN,
    Bits,
    Changes,
    Ignore,
    Limit,
    Root,
    Task,
    Trust,
    What,
    experiment,
    numbers,
    say,
)
from densevl.cli.shared import one_line_errors, warn

if TYPE_CHECKING:
    from densevl.evaluation import Experiment
    from densevl.evaluation.outcome import Outcome

eval_app = typer.Typer(no_args_is_help=True, help="Measure a model on a benchmark, compare recipes, analyse a score.")

Measures = Annotated[
    str,
    options.option(
        "Choose the measures for the task semantic: iou, boundary, calibration, structure, separated by commas.",
        panel=BENCHMARK,
        values=("iou", "boundary", "calibration", "structure"),
        between=",",
    ),
]
Scoring = Annotated[
    str,
    options.option(
        "For the task anomaly: choose how damage is scored: by words, by comparison with normal images, or both.",
        panel=options.METHOD,
        values=options.SCORINGS,
    ),
]
Shots = Annotated[
    int,
    options.option(
        "For the task anomaly: learn from this many normal images of each category.", panel=options.METHOD, min=0
    ),
]
Fresh = Annotated[bool, options.option("Discard what earlier runs in the folder measured.", "--fresh", panel=RUN)]


@eval_app.command("list")
@one_line_errors
def list_benchmarks(as_json: options.Json = False) -> None:
    """List the benchmarks that densevl reads, with their tasks and the files that they need."""
    from densevl.evaluation import BENCHMARKS

    for (name, task), own in BENCHMARKS.items():
        say({"name": name, "task": task, "files": own.files}, f"{name} ({task}): {'; '.join(own.files)}", as_json)


@eval_app.command()
@one_line_errors
def check(
    dataset: Annotated[str, typer.Argument(help="A benchmark that `densevl eval list` names.")],
    root: Root = None,
    task: Task = None,
    ignore: Ignore = "",
    as_json: options.Json = False,
) -> None:
    """Check whether a benchmark is ready: what is missing, and where it was looked for. Exit code 1 if it is not."""
    from densevl.evaluation import check as look

    rules = {"ignore": numbers(ignore)} if ignore else {}
    found = look(dataset, root, task=task, rules=rules)
    facts = {"name": found.name, "root": found.root and str(found.root), "images": found.images}
    verdict = {"ready": not found.faults, "faults": found.faults, "warnings": found.warnings}
    say({**facts, **verdict}, str(found), as_json)
    if found.faults:
        raise typer.Exit(1)


@eval_app.command()
@one_line_errors
@options.loads
def run(
    ctx: typer.Context,
    what: What,
    root: Root = None,
    task: Task = None,
    limit: Limit = None,
    bits: Bits = None,
    ignore: Ignore = "",
    measures: Measures = "iou,calibration",
    variant: Annotated[
        str,
        options.option(
            "Use another rule for reading label numbers: mmseg-default255 (ade847, pc459) or keep-ignore "
            "(coco-object).",
            panel=BENCHMARK,
        ),
    ] = "",
    strings: Annotated[
        str,
        options.option(
            "Choose the words for the classes: their names, or a paper's words, such as sclip@1.", panel=BENCHMARK
        ),
    ] = "names",
    paper: Annotated[
        bool,
        options.option(
            "Use the windows, words and thresholds of the recipe's paper for this benchmark.",
            "--paper",
            panel=BENCHMARK,
        ),
    ] = False,
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = options.PRECISION,
    recipe: options.Recipe = None,
    compat: options.Compat = False,
    background: options.Background = options.BACKGROUND,
    templates: options.Templates = None,
    descriptors: options.Descriptors = None,
    text_transform: options.TextTransform = None,
    template_weights: options.TemplateWeights = "equal",
    parents: options.Parents = "none",
    presence: options.Presence = None,
    short_side: options.ShortSide = None,
    crop: options.Crop = None,
    stride: options.Stride = None,
    plan: options.Plan = None,
    blend: options.Blend = None,
    views: options.Views = None,
    proxy: options.Proxy = None,
    proxy_scope: options.ProxyScope = "image",
    sam: options.Sam = None,
    refine: options.Refine = None,
    upsampler: options.Upsampler = None,
    instance_threshold: options.InstanceThreshold = None,
    prefilter: options.Prefilter = None,
    prefilter_model: options.PrefilterModel = None,
    bank: options.Bank = None,
    bank_share: options.BankShare = options.BANK_SHARE,
    neighbours: options.Neighbours = options.NEIGHBOURS,
    proposals: options.Proposals = None,
    operator: options.Operator = None,
    scoring: Scoring = "winclip",
    shots: Shots = 0,
    changes: Changes = None,
    trust: Trust = False,
    out: options.Out = OUT,
    fresh: Fresh = False,
    overwrite: options.Overwrite = False,
    dump: Annotated[
        bool, options.option("Save every prediction; label maps become 16-bit PNG files.", "--dump", panel=RUN)
    ] = False,
    seed: Annotated[int, options.option("Set the random seed before the model loads.", panel=RUN)] = 0,
    save_every: Annotated[
        float,
        options.option(
            "Save a checkpoint, from which a killed run resumes, after this many seconds.", panel=RUN, min=0
        ),
    ] = 10.0,
    threads: Annotated[
        int | None,
        options.option(
            "Set the number of CPU threads for each process; torch's choice if left out.", panel=RUN, min=1, max=1024
        ),
    ] = None,
    launcher: Annotated[
        str,
        options.option(
            "Give pytorch with torchrun, so that its processes share the images; otherwise none.",
            panel=options.MACHINES,
            values=("none", "pytorch"),
        ),
    ] = "none",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a model on a benchmark and write a report. Run it again to resume a killed run."""
    _evaluate(ctx, experiment(ctx), dump=dump, save_every=save_every)


@eval_app.command()
@one_line_errors
@options.loads
def compare(
    ctx: typer.Context,
    what: What,
    recipes: Annotated[
        str,
        options.option(
            "Compare these recipes, separated by commas; `densevl recipes` lists them.",
            panel=options.METHOD,
            values=options.recipe_names,
            between=",",
        ),
    ],
    root: Root = None,
    task: Task = None,
    limit: Limit = None,
    bits: Bits = None,
    ignore: Ignore = "",
    measures: Measures = "iou,calibration",
    model: options.Model = options.MODEL,
    background: options.Background = options.BACKGROUND,
    changes: Changes = None,
    trust: Trust = False,
    out: options.Out = OUT,
    fresh: Fresh = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure several recipes in the same way and write a table. Run it again to resume a killed comparison."""
    from densevl.evaluation.compare import compare as measure_all

    names = [name.strip() for name in recipes.split(",")]
    outcomes, path = measure_all(experiment(ctx), names, out, **_how(ctx))
    if not (as_json or quiet):
        say({}, path.read_text(encoding="utf-8"), as_json)
    for name, outcome in outcomes.items() if as_json else ():
        say({**_result(outcome), "report": str(Path(out, name, "report.html"))}, "", as_json)


eval_app.command()(analyse)


@eval_app.command()
@one_line_errors
@options.loads
def anomaly(
    ctx: typer.Context,
    what: What,
    root: Root = None,
    limit: Limit = None,
    bits: Bits = None,
    model: options.Model = options.MODEL,
    weights: options.Weights = None,
    device: options.Device = None,
    scoring: Scoring = "winclip",
    shots: Shots = 0,
    proxy: options.Proxy = None,
    changes: Changes = None,
    trust: Trust = False,
    out: options.Out = OUT,
    fresh: Fresh = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure anomaly detection for each category of a benchmark: `run --task anomaly`, with a table."""
    _evaluate(ctx, experiment(ctx, task="anomaly"), table=True)


def _evaluate(ctx: typer.Context, experiment: Experiment, *, table: bool = False, **how: Any) -> None:
    """Run an experiment with the options of its command, and print the outcome."""
    import torch

    from densevl.evaluation import distributed, evaluate

    given = ctx.params
    if given.get("threads"):
        torch.set_num_threads(given["threads"])
    distributed.join(given.get("launcher", "none"))
    try:
        outcome, files = evaluate(experiment, given["out"], **_how(ctx), **how)
        if distributed.rank() == 0 and (given["as_json"] or not given["quiet"]):
            summary = f"{outcome.headline}, report in {files[0]}"
            text = f"{outcome.table()}\n{summary}" if table else summary
            say({**_result(outcome), "report": str(files[0])}, text, given["as_json"])
    finally:
        distributed.leave()


def _how(ctx: typer.Context) -> dict[str, Any]:
    overwrite, quiet = ctx.params["overwrite"], ctx.params["quiet"]
    return {"overwrite": overwrite, "quiet": quiet, "fresh": ctx.params["fresh"] or overwrite, "tell": warn}


def _result(outcome: Outcome) -> dict[str, Any]:
    experiment = outcome.experiment
    own = {"dataset": experiment.dataset, "task": experiment.task}
    return {
        **own,
        "model": outcome.used.get("model"),
        "recipe": outcome.used.get("recipe"),
        "images": len(outcome.dataset),
        "measures": outcome.summary,
        "n/a": outcome.undefined,
        "warnings": outcome.warnings,
    }
