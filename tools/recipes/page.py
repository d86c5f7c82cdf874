"""Write docs/recipes.md from the catalogue: python -m tools.recipes.page.

The prose is `head.md`, `example.diff`, `example_part.diff` and `measured.md`. Measured figures are those that
`tools.recipes.benchmark` wrote to docs/recipes.json; the rest comes from the entries of the catalogue.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densevl.recipes import Recipe, get, names
from densevl.recipes.catalogue import borrowed, last_block, layers
from densevl.recipes.catalogue.published import BENCHMARKS
from densevl.recipes.hints import HOW, OPTIONAL
from tools.recipes.table import markdown

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PAGE, MEASURED = DOCS / "recipes.md", DOCS / "recipes.json"
ROOMS = {
    "The last block by its own projections": last_block.ENTRIES,
    "Other blocks as well": layers.ENTRIES,
    "Another model's affinity, or regions": borrowed.ENTRIES,
}
WRAP = 110


def page(measured: dict[str, Any]) -> str:
    """Return the whole page; `measured` is the output of `tools.recipes.benchmark`."""
    parts = [
        _text("head.md").replace("{diff}", _text("example.diff")).replace("{part}", _text("example_part.diff")),
        overview(),
        figures(measured),
    ]
    for title, entries in ROOMS.items():
        parts += [f"## {title}", *(section(entry) for entry in entries)]
    return "\n\n".join(parts) + "\n"


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8").rstrip()


def overview() -> str:
    """Return all recipes as a table: their inputs, and their published figures."""
    lines = [
        "## Overview",
        "",
        "The figures are published mIoU, each by its own protocol (see the sections). Inputs in brackets are optional.",
        "",
    ]
    lines += [f"| recipe | reads | {' | '.join(BENCHMARKS)} |", "|---" * (len(BENCHMARKS) + 2) + "|"]
    for name in names():
        recipe = get(name)
        miou = recipe.source.miou if recipe.source else {}
        cells = (f"{miou[key]:.1f}" if key in miou else "" for key in BENCHMARKS)
        reads = ", ".join(f"({hint})" if hint in OPTIONAL else hint for hint in sorted(recipe.reads))
        lines.append(f"| [`{name}`](#{name}) | {reads} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figures(measured: dict[str, Any]) -> str:
    """Return the measured table and its limits."""
    counts = {"images": measured["images"], "large": round(0.3 * measured["images"]), "threads": measured["threads"]}
    return _text("measured.md").format(**counts, table=markdown(measured).rstrip())


def section(recipe: Recipe) -> str:
    """Describe one recipe."""
    lines = [f"### {recipe.name}", "", recipe.explain(), ""]
    if recipe.source:
        source = recipe.source
        lines.append(f"- Paper: [{source.paper}]({source.url}), {source.venue}.")
        if source.miou:
            told = ", ".join(f"{name} {value:g}" for name, value in source.miou.items())
            lines.append(f"- Published mIoU: {told} ({source.protocol}).")
        elif source.protocol:
            lines.append(f"- Published with: {source.protocol}.")
    for hint in sorted(recipe.reads):
        own = (
            f"; published with {recipe.proxy.model}, of which it reads {recipe.proxy.features}"
            if hint == "proxy"
            else ""
        )
        lines.append(f"- {'Can read' if hint in OPTIONAL else 'Reads'} `{hint}`: {HOW[hint]}{own}.")
    if recipe.note:
        lines.append(f"- Note: {recipe.note}")
    if recipe.published:
        lines.append(f"- With `compat=True`: {_changes(recipe.published)}.")
    lines += [
        f'- `get("{recipe.name}", benchmark="{benchmark}")`: {_changes(changes)}.'
        for benchmark, changes in recipe.settings.items()
    ]
    return "\n".join([*lines, "", "```python", call(recipe), "```"])


def _changes(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"`{slot}={value!r}`" for slot, value in changes.items() if slot != "published")


def call(recipe: Recipe) -> str:
    """Return the Python that makes the recipe, with the slots that differ from their defaults."""
    name, *slots = recipe.code()
    if not slots:
        return f"Recipe({name})"
    wrapped = (textwrap.fill(f"{line},", WRAP, initial_indent="    ", subsequent_indent="        ") for line in slots)
    return "\n".join([f"Recipe(\n    {name},", *wrapped, ")"])


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(json.loads(MEASURED.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
