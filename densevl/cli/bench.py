"""`densevl bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from densevl.cli import options
from densevl.cli.shared import one_line_errors, stderr, stdout, warn
from densevl.errors import OptionError
from densevl.files import json_text

QUALITY = "Quality and cost"


@one_line_errors
@options.loads
def bench(
    model: Annotated[
        str, typer.Option(help="Choose the model, as `densevl models` lists them, or random:ViT-B-16.")
    ] = "auto",
    quality: Annotated[
        Path | None,
        options.option(
            "Compare the mIoU and time per photo of models on a folder with images/, labels/ and a list of classes, "
            "and recommend one.",
            panel=QUALITY,
            there=True,
        ),
    ] = None,
    models: Annotated[
        str | None,
        options.option(
            "With --quality: compare these models, NAME,NAME; all on this machine if left out.", panel=QUALITY
        ),
    ] = None,
    recipes: Annotated[
        str | None, typer.Option(help="Time these recipes, NAME,NAME; the model's default if left out.")
    ] = None,
    plans: Annotated[
        str, typer.Option(help="Time these window plans: tiles, sliding (the papers'), whole.")
    ] = "tiles,sliding",
    precisions: Annotated[
        str, typer.Option(help="Time these precisions: float32, int8, bfloat16, float16, auto.")
    ] = "float32,int8",
    sizes: Annotated[
        str | None, typer.Option(help="Set the height x width of the photo after its resize: 336x448,560x1008.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Set the number of labels: 1,21,171.")] = "21",
    rounds: Annotated[int, typer.Option(min=1, help="Take the median of this many rounds.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Set the number of CPU threads.")] = 1,
    device: Annotated[str | None, typer.Option(help="Choose where the model runs: cpu, cuda, ...")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON for each case instead of a table.")
    ] = False,
) -> None:
    """Time methods on this machine, in seconds per photo and relative to bare forward passes of the model."""
    if quality is not None:
        _quality(quality, models, precisions, rounds, threads, device, as_json=as_json)
        return
    if models is not None:
        raise OptionError("--models needs --quality; without it, use --model")
    import itertools

    import torch

    from densevl.benchmarking.cases import Case, measure, parse_counts, parse_sizes
    from densevl.benchmarking.random_model import load

    torch.set_num_threads(threads)
    backbone = load(model, device)
    default = backbone.protocol.short_side or (backbone.protocol.crop or 96)
    shapes = parse_sizes(f"{default}x{default * 4 // 3}" if sizes is None else sizes)
    counts = parse_counts(labels)
    names: list[str | None] = [None] if recipes is None else [name.strip() for name in recipes.split(",")]
    for name in names:
        backbone.resolve(name)  # a mistyped name fails before the first measurement
    console = stdout()
    columns = ("recipe", "plan", "precision", "size", "labels", "seconds", "of bare", "faults", "extra MiB")
    table = Table(*columns, box=None)
    with stderr().status("measuring") as status:
        for recipe, plan, precision, (height, width), count in itertools.product(
            names, plans.split(","), precisions.split(","), shapes, counts
        ):
            status.update(f"{recipe or backbone.default_recipe}, {plan}, {precision}, {height}x{width}, {count} labels")
            row = measure(backbone, Case(recipe, plan, precision, height, width, count), rounds)
            if as_json:
                console.print(json_text(row), markup=False)
                continue
            extra = "-" if row["extra_mib"] is None else f"{row['extra_mib']:.0f}"
            cells = (row["recipe"], plan, row["precision"], f"{height}x{width}", str(count), f"{row['seconds']:.3f}")
            faults = "-" if row["faults"] is None else f"{row['faults']:.0f}"
            table.add_row(*cells, f"{row['of_bare']:.2f}", faults, extra)
    if not as_json:
        console.print(table)
        where = "seconds" if backbone.device.type == "cuda" else f"CPU seconds, {threads} thread(s)"
        console.print(
            escape(f"{backbone.name}: {where}, median of {rounds}. of bare: over the passes of the papers' windows.")
        )
        console.print("faults: memory pages that the system had to provide in that time; none is best.", markup=False)


def _quality(
    folder: Path, models: str | None, precisions: str, rounds: int, threads: int, device: str | None, *, as_json: bool
) -> None:
    """Print the table of `--quality`, and the recommendation."""
    import torch

    from densevl.evaluation.quality import at_hand, measure, named, recommended

    torch.set_num_threads(threads)
    names = at_hand() if models is None else [name.strip() for name in models.split(",") if name.strip()]
    if not names:
        raise OptionError(
            "--models is empty: give NAME,NAME, or leave it out for all available models (densevl models)"
        )
    kinds = [kind.strip() for kind in precisions.split(",")]
    table = Table("model", "precision", "recipe", "mIoU", "ms a photo", "model MiB", "extra MiB", box=None)
    rows = []
    with stderr().status("measuring") as status:
        for row in measure(str(folder), names, kinds, rounds=rounds, tell=warn, device=device):
            rows.append(row)
            status.update(f"{named(row)} is done")
            if as_json:
                stdout().print(json_text(row), markup=False)
                continue
            extra = "-" if row["extra_mib"] is None else f"{row['extra_mib']:.0f}"
            score = f"{100 * row['mIoU']:.1f}" if row["mIoU"] == row["mIoU"] else "n/a"
            cost = (f"{row['milliseconds']:.1f}", f"{row['model_mib']:.0f}", extra)
            table.add_row(row["model"], row["precision"], row["recipe"] or "-", score, *cost)
    taken, why = recommended(rows)
    if as_json:
        stdout().print(
            json_text({"recommended": taken["model"], "precision": taken["precision"], "why": why}), markup=False
        )
        return
    stdout().print(table)
    stdout().print(escape(f"{rows[0]['images']} images of {folder}; CPU milliseconds, {threads} thread(s)."))
    stdout().print(escape(f"recommended: {named(taken)}, {why}."))
