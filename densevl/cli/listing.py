"""`densevl recipes` and `densevl doctor`: what is available."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from densevl.cli import options
from densevl.cli.shared import one_line_errors, print_json, stderr, stdout

if TYPE_CHECKING:
    from densevl.recipes import Recipe

recipes_app = typer.Typer(invoke_without_command=True, help="List methods or explain one.")
PIPED_WIDTH = 600
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON for each recipe instead of text.")]
VENUES = (("Pattern Recognition", "PR"), (" Workshops", "W"))
GIVEN = {
    "proxy": ": --proxy (Segmenter(proxy=...)), a name or file, mini-sam is in the package",
    "sam": ": --sam (Segmenter(sam=...)), a checkpoint of SAM, mini-sam is in the package",
    "regions": ": segment(image, labels, regions=...), or --proposals mini-sam proposes them, for drawings",
    "masks": ": segment(image, labels, regions=...), or --proposals mini-sam proposes them, for drawings",
    "text": ": passed on by itself; encode_dense(hints=Hints(text=...))",
    "boxes": ": encode_dense(hints=Hints(boxes=...))",
}
"""How each hint is given, on the command line and in Python."""


@recipes_app.callback()
@one_line_errors
def recipes(context: typer.Context, as_json: AsJson = False) -> None:
    """List the recipes: what each changes, its published mIoU on VOC20, and what it needs."""
    if context.invoked_subcommand:
        return
    from densevl.recipes import get, names
    from densevl.recipes.hints import OPTIONAL

    if as_json:
        for name in names():
            print_json(_facts(get(name)))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "venue", "VOC20", "needs", "what it changes"):
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    for name in names():
        recipe = get(name)
        source = recipe.source
        voc = source.miou.get("voc20") if source else None
        needs = ", ".join(f"({hint})" if hint in OPTIONAL else hint for hint in sorted(recipe.reads))
        row = (_venue(source.venue if source else ""), f"{voc:g}" if voc else "-", needs, "; ".join(recipe.clauses()))
        table.add_row(name, *map(escape, row))
    console = stdout()
    if not console.is_terminal:
        console.width = PIPED_WIDTH  # one line per recipe, for grep
    console.print(table)
    console.print("VOC20: published mIoU; in brackets: can use. All of one: densevl recipes show NAME")


def _venue(venue: str) -> str:
    """Return the venue of a method, abbreviated."""
    for long, brief in VENUES:
        venue = venue.replace(long, brief)
    return venue


@recipes_app.command()
@one_line_errors
def show(name: str, as_json: AsJson = False) -> None:
    """Explain one recipe in plain words; NAME may be package.module:NAME, a recipe of your own."""
    from densevl.recipes import get
    from densevl.recipes.hints import HOW, OPTIONAL

    recipe = get(name)
    if as_json:
        return print_json(_facts(recipe))
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
    for hint in sorted(recipe.reads):
        own = f"; if left out, {recipe.proxy.model}" if hint == "proxy" and recipe.proxy else ""
        console.print(f"{'can use' if hint in OPTIONAL else 'needs'} {hint}: {escape(HOW[hint] + GIVEN[hint] + own)}")
    for slot, value in recipe.published.items():
        console.print(f"with --compat, as published: {escape(f'{slot}={value!r}')}")
    for benchmark, changes in recipe.settings.items():
        values = ", ".join(f"{slot}={value!r}" for slot, value in changes.items() if slot != "published")
        console.print(f"on {benchmark}, get({recipe.name!r}, benchmark={benchmark!r}): {escape(values)}")
    console.print(escape(repr(recipe)), style="dim")


def _facts(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as JSON."""
    from densevl.recipes.hints import OPTIONAL

    return {
        "recipe": recipe.name,
        "changes": recipe.clauses(),
        "explained": recipe.explain(),
        "note": recipe.note,
        "needs": sorted(recipe.reads - OPTIONAL),
        "can_use": sorted(recipe.reads & OPTIONAL),
        "source": asdict(recipe.source) if recipe.source else None,
        "published": {slot: repr(value) for slot, value in recipe.published.items()},
        "written": repr(recipe),
    }


@one_line_errors
def doctor(
    speed: Annotated[
        bool, typer.Option("--speed", help="Also measure which precision is fastest here; takes a minute or two.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Check this installation: versions, extras, models at hand, known traps, and what to do about them."""
    from densevl.diagnosis import diagnose

    table = Table("what", "", "found", box=None, pad_edge=False)
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}
    with stderr().status("looking"):
        rows = diagnose(speed=speed)
    for row in rows:
        table.add_row(row.what, marks[row.verdict], escape(row.found))
        if as_json:
            print_json(asdict(row))
    if not as_json:
        stdout().print(table)
    if any(row.verdict == "bad" for row in rows):
        raise typer.Exit(1)
