"""`densevl bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from densevl.cli.shared import one_line_errors, stderr, stdout


@one_line_errors
def bench(
    model: Annotated[str, typer.Option(help="As `densevl models` lists them, or random:ViT-B-16.")] = "auto",
    recipes: Annotated[str, typer.Option(help="NAME,NAME; the model's default if left out.")] = "",
    plans: Annotated[str, typer.Option(help="Of tiles, sliding (the papers'), whole.")] = "tiles,sliding",
    precisions: Annotated[str, typer.Option(help="Of float32, int8, bfloat16.")] = "float32,int8",
    sizes: Annotated[str, typer.Option(help="Height x width of the photo after its resize: 336x448,560x1008.")] = "",
    labels: Annotated[str, typer.Option(help="How many labels: 1,21,171.")] = "21",
    rounds: Annotated[int, typer.Option(min=1, help="The time is the median of so many.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    write: Annotated[Path | None, typer.Option("--json", help="Write the rows here too.")] = None,
) -> None:
    """Time methods on this machine, as seconds of a photo and as ratios to bare passes of the model."""
    import itertools

    import torch

    from densevl.benchmarking.cases import Case, measure, parse_sizes
    from densevl.benchmarking.random_model import load
    from densevl.files import atomic_write

    torch.set_num_threads(threads)
    backbone = load(model, device)
    default = backbone.protocol.short_side or (backbone.protocol.crop or 96)
    found = parse_sizes(sizes or f"{default}x{default * 4 // 3}")
    counts = [int(count) for count in labels.split(",")]
    names: list[str | None] = [*recipes.split(",")] if recipes else [None]
    table = Table("recipe", "plan", "precision", "size", "labels", "seconds", "of bare", "extra MiB", box=None)
    rows: list[dict[str, Any]] = []
    with stderr().status("measuring") as status:
        for recipe, plan, precision, (height, width), count in itertools.product(
            names, plans.split(","), precisions.split(","), found, counts
        ):
            status.update(f"{recipe or backbone.default_recipe}, {plan}, {precision}, {height}x{width}, {count} labels")
            row = measure(backbone, Case(recipe, plan, precision, height, width, count), rounds)
            rows.append(row)
            extra = "-" if row["extra_mib"] is None else f"{row['extra_mib']:.0f}"
            cells = (row["recipe"], plan, precision, f"{height}x{width}", str(count), f"{row['seconds']:.3f}")
            table.add_row(*cells, f"{row['of_bare']:.2f}", extra)
    stdout().print(table)
    where = "seconds" if backbone.device.type == "cuda" else f"CPU seconds, {threads} thread(s)"
    stdout().print(
        escape(f"{backbone.name}: {where}, median of {rounds}. of bare: over the passes of the papers' windows.")
    )
    if write is not None:
        atomic_write(write, (json.dumps(rows, indent=1) + "\n").encode())
