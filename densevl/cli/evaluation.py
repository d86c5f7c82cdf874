"""The `densevl eval` commands, thin: benchmarks checked, run, compared, analysed. Torch is imported when one runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densevl.cli import options
from densevl.cli.images import WINDOWS, print_json, text_options
from densevl.cli.shared import one_line_errors, stderr, stdout, warn
from densevl.errors import OptionError

if TYPE_CHECKING:
    from densevl.evaluation import Experiment
    from densevl.evaluation.outcome import Outcome

eval_app = typer.Typer(no_args_is_help=True, help="Measure a model on a benchmark, compare recipes, analyse a score.")

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
Measures = Annotated[
    str,
    options.option(
        "Choose the measures for the task semantic: iou, boundary, calibration, structure, separated by commas.",
        panel=BENCHMARK,
        values=("iou", "boundary", "calibration", "structure"),
        between=",",
    ),
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
OUT = "densevl-out/eval"
ANALYSES = (
    *("vocabulary", "background", "corruption", "size", "written", "association", "unknown", "backgrounds"),
    "agreement",
)


@eval_app.command("list")
@one_line_errors
def list_benchmarks(as_json: options.Json = False) -> None:
    """List the benchmarks that densevl reads, with their tasks and the files that they need."""
    from densevl.evaluation import BENCHMARKS

    for (name, task), own in BENCHMARKS.items():
        _say({"name": name, "task": task, "files": own.files}, f"{name} ({task}): {'; '.join(own.files)}", as_json)


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

    rules = {"ignore": _numbers(ignore)} if ignore else {}
    found = look(dataset, root, task=task, rules=rules)
    facts = {"name": found.name, "root": found.root and str(found.root), "images": found.images}
    told = {"ready": not found.faults, "faults": found.faults, "warnings": found.warnings}
    _say({**facts, **told}, str(found), as_json)
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
    _evaluate(ctx, _experiment(ctx), dump=dump, save_every=save_every)


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
    outcomes, path = measure_all(_experiment(ctx), names, out, **_how(ctx))
    if not (as_json or quiet):
        _say({}, path.read_text(encoding="utf-8"), as_json)
    for name, outcome in outcomes.items() if as_json else ():
        _say({**_result(outcome), "report": str(Path(out, name, "report.html"))}, "", as_json)


@eval_app.command()
@one_line_errors
@options.loads
def analyse(
    ctx: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            help="A benchmark that `densevl eval list` names, or a config. With --labels, photos: a file or folder.",
            show_default=False,
        ),
    ],
    root: Root = None,
    labels: Annotated[
        str,
        options.option(
            'For photos without ground truth: name what to look for: "cat,dog|puppy", or a .txt or .json file.',
            panel=options.WORDS,
        ),
    ] = "",
    limit: Annotated[
        int | None, options.option("Use only this many images; 50 if left out.", panel=BENCHMARK, min=1)
    ] = None,
    bits: Bits = None,
    only: Annotated[
        str | None,
        options.option(
            "Choose the analyses to run, separated by commas; all that the images allow if left out.",
            panel=BENCHMARK,
            values=ANALYSES,
            between=",",
        ),
    ] = None,
    distractors: Annotated[
        str,
        options.option(
            "Add these labels that the benchmark does not have, separated by commas, or a .txt file; ADE20K's if "
            "left out.",
            panel=options.WORDS,
        ),
    ] = "",
    text_masks: Annotated[
        Path | None,
        options.option(
            "Also test photos with their text masked: a folder with a mask NAME.png of the text in each photo NAME.",
            panel=BENCHMARK,
            there=True,
        ),
    ] = None,
    attributes: Annotated[
        Path | None,
        options.option(
            "Use the photos in a JSON list of {image, box, object, attribute} for the analysis of attributes. If "
            "left out, the benchmark's objects are recoloured.",
            panel=BENCHMARK,
            there=True,
        ),
    ] = None,
    model: options.Model = options.MODEL,
    recipe: options.Recipe = None,
    changes: Changes = None,
    trust: Trust = False,
    out: options.Out = OUT,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Show what a score hides, and how to improve it. Writes a page with charts; some analyses need no ground truth.

    Covers added labels, backgrounds, corruptions, unknown classes, sizes, written words, attributes and views.
    """
    from dataclasses import replace

    from densevl.evaluation import BENCHMARKS, analyses
    from densevl.evaluation.report import analyses as analysis_report

    wanted = None if only is None else [name.strip() for name in only.split(",")]
    experiment = _experiment(ctx, "folder" if labels else "")
    experiment = replace(experiment, limit=experiment.limit or 50)
    if labels and experiment.root is not None:
        raise OptionError("--root is for benchmarks; with --labels, name the photos in place of a benchmark")
    if labels and what in {name for name, _ in BENCHMARKS} and not Path(what).exists():
        raise OptionError(f"{what} is a benchmark, and --labels is for photos: name a file or folder, or leave it out")
    words: dict[str, Any] = {
        "only": wanted,
        "distractors": distractors,
        "text_masks": text_masks,
        "attributes": attributes,
    }
    of = (what, labels) if labels else (experiment.dataset, "")
    analysis_report.claim(out, analyses.asking(*of, experiment, **words), overwrite=overwrite)
    with stderr().status("loading the model") as status:
        how: dict[str, Any] = {**words, "show": status.update, "tell": warn}
        if labels:
            found = analyses.analyse_photos(what, labels, experiment, **how)
        else:
            found = analyses.analyse(experiment, **how)
    files = analysis_report.write(found, out)
    told = [(name, own) for name, own in analysis_report.summary(found) if own.advice]
    facts = {
        "analyses": [analysis.name for analysis in found.done],
        "left out": {own.name: own.reason for own in found.left},
        "advice": [{"analysis": name, "text": own.text, "advice": own.advice} for name, own in told],
        "report": str(files[0]),
    }
    lines = [f"{name}: {own.text} {own.advice}" for name, own in told]
    lines += [f"left out: {own.name}: {own.reason}" for own in found.left]
    _say(facts, "\n".join([*lines, f"report in {files[0]}"]), as_json)


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
    _evaluate(ctx, _experiment(ctx, task="anomaly"), table=True)


def _evaluate(ctx: typer.Context, experiment: Experiment, *, table: bool = False, **how: Any) -> None:
    """Run an experiment as the options of its command say, and print what came out."""
    import torch

    from densevl.evaluation import distributed, evaluate

    given = ctx.params
    if given.get("threads"):
        torch.set_num_threads(given["threads"])
    distributed.join(given.get("launcher", "none"))
    try:
        outcome, files = evaluate(experiment, given["out"], **_how(ctx), **how)
        if distributed.rank() == 0 and (given["as_json"] or not given["quiet"]):
            said = f"{outcome.headline}, report in {files[0]}"
            text = f"{outcome.table()}\n{said}" if table else said
            _say({**_result(outcome), "report": str(files[0])}, text, given["as_json"])
    finally:
        distributed.leave()


def _how(ctx: typer.Context) -> dict[str, Any]:
    overwrite, quiet = ctx.params["overwrite"], ctx.params["quiet"]
    return {"overwrite": overwrite, "quiet": quiet, "fresh": ctx.params["fresh"] or overwrite, "tell": warn}


def _experiment(ctx: typer.Context, what: str = "", **settings: Any) -> Experiment:
    """The experiment that WHAT, or `what`, and the options given name; what was not given is the config's."""
    from dataclasses import fields

    from densevl.evaluation import Experiment
    from densevl.evaluation.config import is_config, load_experiment, merged, parse_change

    def said(name: str) -> bool:
        source = ctx.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    given = {name: value for name, value in ctx.params.items() if said(name)}
    settings |= {entry.name: given[entry.name] for entry in fields(Experiment) if entry.name in given}
    if "ignore" in given:
        settings["ignore"] = _numbers(given["ignore"])
    if "measures" in given:
        settings["measures"] = [name.strip() for name in given["measures"].split(",")]
    if said_of_words := text_options(given):
        settings["text"] = said_of_words
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


def _numbers(text: str) -> list[int | str]:
    """Numbers with commas between; words stay as they are."""
    return [int(part) if part.isdecimal() else part for part in map(str.strip, text.split(","))]


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


def _say(facts: Mapping[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        print_json(dict(facts))
    else:
        stdout().print(text, markup=False, emoji=False)
