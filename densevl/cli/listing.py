"""What there is: `densevl models`, `densevl recipes`, `densevl doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from densevl.cli.shared import one_line_errors, stdout

if TYPE_CHECKING:
    pass

recipes_app = typer.Typer(invoke_without_command=True, help="Methods: list them, or explain one.")
PIPED_WIDTH = 140


@one_line_errors
def models() -> None:
    """List the models, best first, and which are on this machine."""
    from densevl.backbones import available
    from densevl.backbones.proxies import known_proxies

    table = Table("model", "on this machine", "what it is", box=None, pad_edge=False)
    for info in available():
        table.add_row(info.name, "[green]yes[/]" if info.ready else "no", escape(info.about))
    stdout().print(table)
    stdout().print(
        "Any other open_clip ViT works by name (ARCH/TAG), from a folder (local-dir:PATH) or from a file (--weights)."
    )
    stdout().print(f"Recipes that borrow take --proxy: {', '.join(known_proxies())}, a ViT of timm, or a file.")


@recipes_app.callback()
@one_line_errors
def recipes(context: typer.Context) -> None:
    """List the recipes: what each changes, its published mIoU on VOC20, and what it needs."""
    if context.invoked_subcommand:
        return
    from densevl.pipelines.recipe_cards import short, short_needs, short_venue
    from densevl.recipes import get, names

    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "venue", "VOC20", "what it changes", "needs"):
        table.add_column(column, no_wrap=column in ("recipe", "venue"))
    for name in names():
        recipe = get(name)
        source = recipe.source
        voc = source.miou.get("voc20") if source else None
        row = (short_venue(recipe), f"{voc:g}" if voc else "-", short(recipe), short_needs(recipe))
        table.add_row(name, *map(escape, row))
    console = stdout()
    if not console.is_terminal:
        console.width = max(console.width, PIPED_WIDTH)  # one line a recipe, for grep
    console.print(table)
    console.print(
        "qq, kk, vv: queries, keys, values look at themselves; bare: without skip connection and MLP. VOC20: published "
        "mIoU.\nAll of one: densevl recipes show NAME"
    )


@recipes_app.command()
@one_line_errors
def show(name: str) -> None:
    """Explain one recipe in plain words."""
    from densevl.pipelines.recipe_cards import as_code, needs
    from densevl.recipes import get

    recipe = get(name)
    console = stdout()
    console.print(f"[bold]{recipe.name}[/]: {escape(recipe.explain())}")
    if recipe.note:
        console.print(escape(recipe.note))
    if recipe.source:
        source = recipe.source
        console.print(f"{escape(source.paper)} ({source.venue}), {source.url}")
        if source.miou:
            figures = ", ".join(f"{key} {value:g}" for key, value in source.miou.items())
            console.print(f"published mIoU, ViT-B/16: {figures} ({escape(source.protocol)})")
    for need in needs(recipe):
        console.print(f"{'can use' if need.optional else 'needs'} {need.name}: {escape(need.how)}")
    console.print(escape(as_code(recipe)), style="dim")


@one_line_errors
def doctor() -> None:
    """Check this installation: versions, models at hand, and known traps."""
    from densevl.diagnosis import diagnose

    table = Table("what", "", "found", box=None, pad_edge=False)
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}
    rows = diagnose()
    for row in rows:
        table.add_row(row.what, marks[row.verdict], escape(row.found))
    stdout().print(table)
    if any(row.verdict == "bad" for row in rows):
        raise typer.Exit(1)
