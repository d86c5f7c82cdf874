"""`densevl eval analyse`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from densevl.cli import options
from densevl.cli.measure.experiments import BENCHMARK, OUT, Bits, Changes, Root, Trust, experiment, say
from densevl.cli.shared import one_line_errors, stderr, warn
from densevl.errors import OptionError

ANALYSES = (
    *("vocabulary", "background", "corruption", "size", "written", "association", "unknown", "backgrounds"),
    "agreement",
)


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
    asked = experiment(ctx, "folder" if labels else "")
    asked = replace(asked, limit=asked.limit or 50)
    if labels and asked.root is not None:
        raise OptionError("--root is for benchmarks; with --labels, name the photos in place of a benchmark")
    if labels and what in {name for name, _ in BENCHMARKS} and not Path(what).exists():
        raise OptionError(f"{what} is a benchmark, but --labels is for photos: name a file or folder, or leave it out")
    words: dict[str, Any] = {
        "only": wanted,
        "distractors": distractors,
        "text_masks": text_masks,
        "attributes": attributes,
    }
    of = (what, labels) if labels else (asked.dataset, "")
    analysis_report.claim(out, analyses.asking(*of, asked, **words), overwrite=overwrite)
    with stderr().status("loading the model") as status:
        how: dict[str, Any] = {**words, "show": status.update, "tell": warn}
        found = analyses.analyse_photos(what, labels, asked, **how) if labels else analyses.analyse(asked, **how)
    files = analysis_report.write(found, out)
    advised = [(name, own) for name, own in analysis_report.summary(found) if own.advice]
    facts = {
        "analyses": [analysis.name for analysis in found.done],
        "left out": {own.name: own.reason for own in found.left},
        "advice": [{"analysis": name, "text": own.text, "advice": own.advice} for name, own in advised],
        "report": str(files[0]),
    }
    lines = [f"{name}: {own.text} {own.advice}" for name, own in advised]
    lines += [f"left out: {own.name}: {own.reason}" for own in found.left]
    say(facts, "\n".join([*lines, f"report in {files[0]}"]), as_json)
