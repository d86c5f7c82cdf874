"""Write docs/recipes.md from the catalogue: python -m tools.recipes.page.

The prose is `head.md`, `example.diff` and `measured.md`, the measured figures are those that `tools.recipes.benchmark`
left in docs/recipes.json; all else is what the entries say of themselves.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from densevl.recipes import Recipe, get, names
from densevl.recipes.catalogue import borrowed, last_block, layers
from densevl.recipes.catalogue.published import BENCHMARKS
from densevl.recipes.parts import Foveal
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
    """The whole page; `measured` is what `tools.recipes.benchmark` wrote."""
    parts = [_text("head.md").replace("{diff}", _text("example.diff")), overview(), figures(measured)]
    for title, entries in ROOMS.items():
        parts += [f"## {title}", *(section(entry) for entry in entries)]
    return "\n\n".join(parts) + "\n"


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8").rstrip()


def overview() -> str:
    """All recipes as a table: what each needs, and its published figures."""
    lines = ["## Overview", "", "Published mIoU, each by its own protocol; see the sections.", ""]
    lines += [f"| recipe | needs | {' | '.join(BENCHMARKS)} |", "|---" * (len(BENCHMARKS) + 2) + "|"]
    for name in names():
        recipe = get(name)
        miou = recipe.source.miou if recipe.source else {}
        cells = (f"{miou[key]:.1f}" if key in miou else "" for key in BENCHMARKS)
        kinds = ", ".join(kind for kind, _ in needs(recipe))
        lines.append(f"| [`{name}`](#{name}) | {kinds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figures(measured: dict[str, Any]) -> str:
    """The measured table and what it can and cannot say."""
    counts = {"images": measured["images"], "large": round(0.3 * measured["images"]), "threads": measured["threads"]}
    return _text("measured.md").format(**counts, table=markdown(measured).rstrip())


def section(recipe: Recipe) -> str:
    """One recipe."""
    lines = [f"### {recipe.name}", "", recipe.explain(), ""]
    if recipe.source:
        source = recipe.source
        lines.append(f"- Paper: [{source.paper}]({source.url}), {source.venue}.")
        if source.miou:
            told = ", ".join(f"{name} {value:g}" for name, value in source.miou.items())
            lines.append(f"- Published mIoU: {told} ({source.protocol}).")
        elif source.protocol:
            lines.append(f"- Published with: {source.protocol}.")
    lines += [f"- Needs {text}." for _, text in needs(recipe)]
    if recipe.note:
        lines.append(f"- Note: {recipe.note}")
    if recipe.quirks:
        changed = ", ".join(f"`{name}={short(value)}`" for name, value in recipe.quirks)
        lines.append(f"- With `compat=True`: {changed}.")
    return "\n".join([*lines, "", "```python", call(recipe), "```"])


def needs(recipe: Recipe) -> list[tuple[str, str]]:
    """What a recipe reads besides the image, each as a word and a phrase."""
    found = []
    if recipe.reads_proxy and recipe.proxy is not None:
        use = recipe.proxy
        grid = ", working on its grid" if use.fine else ""
        found.append(("proxy", f"`proxy`: published with {use.model}, of which it reads {use.features}{grid}"))
    if recipe.whole is not None:
        found.append(("sam", "`sam`: the attention of SAM's encoder"))
    if recipe.scope is not None:
        found.append(("regions", "`regions`: a segment map, 0 where no segment is"))
    if recipe.readout == "regions":
        found.append(("masks", "`regions`: masks, which may overlap"))
    if recipe.feedback is not None:
        found.append(("text", "`text`, for its second look; without, it looks once"))
    if isinstance(recipe.bias, Foveal):
        found.append(("boxes", "`boxes`: one for each image; without, the whole image is the box"))
    return found


def call(recipe: Recipe) -> str:
    """The line of Python that makes the recipe, with the fields that are not their defaults."""
    given = [f"{name}={short(value)}" for name, value in _changed(recipe) if name not in ("name", "source", "note")]
    if not given:
        return f'Recipe("{recipe.name}")'
    wrapped = (textwrap.fill(f"{line},", WRAP, initial_indent="    ", subsequent_indent="        ") for line in given)
    return "\n".join([f'Recipe(\n    "{recipe.name}",', *wrapped, ")"])


def short(value: Any) -> str:
    """A value as Python, dataclasses without the fields that are their defaults."""
    if is_dataclass(value) and not isinstance(value, type):
        given = ", ".join(
            short(item) if position == 0 and name == fields(value)[0].name else f"{name}={short(item)}"
            for position, (name, item) in enumerate(_changed(value))
        )
        return f"{type(value).__name__}({given})"
    if isinstance(value, tuple):
        return f"({', '.join(map(short, value))}{',' if len(value) == 1 else ''})"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _changed(value: Any) -> list[tuple[str, Any]]:
    """Fields that have no default or differ from it."""
    return [
        (entry.name, getattr(value, entry.name))
        for entry in fields(value)
        if entry.default is MISSING or getattr(value, entry.name) != entry.default
    ]


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(json.loads(MEASURED.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
