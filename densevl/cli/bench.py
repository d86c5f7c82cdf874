"""`densevl bench`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from densevl.cli import options
from densevl.cli.shared import one_line_errors, stderr, stdout
from densevl.files import json_text


@one_line_errors
@options.loads
def bench(
    model: Annotated[str, typer.Option(help="As `densevl models` lists them, or random:ViT-B-16.")] = "auto",
    recipes: Annotated[str | None, typer.Option(help="NAME,NAME; the model's default if left out.")] = None,
    plans: Annotated[str, typer.Option(help="Of tiles, sliding (the papers'), whole.")] = "tiles,sliding",
    precisions: Annotated[str, typer.Option(help="Of float32, int8, bfloat16, float16, auto.")] = "float32,int8",
    sizes: Annotated[
        str | None, typer.Option(help="Height x width of the photo after its resize: 336x448,560x1008.")
    ] = None,
    labels: Annotated[str, typer.Option(help="How many labels: 1,21,171.")] = "21",
    rounds: Annotated[int, typer.Option(min=1, help="The time is the median of so many.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line a case instead of the table.")] = False,
) -> None:
    """Time methods on this machine, as seconds of a photo and as ratios to bare passes of the model."""
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
        backbone.resolve(name)  # a mistyped one fails before the first is measured
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
        console.print("faults: pages of memory that the system filled anew in that time; none is best.", markup=False)
