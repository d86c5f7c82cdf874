"""The generated tables of docs/evaluation.md: python -m tools.evaluation_tables.

Benchmarks with the files that their readers expect, and the published rows with a known protocol, each between markers
in the page.
"""

from __future__ import annotations

from pathlib import Path

from densevl.evaluation import papers
from densevl.evaluation.benchmarks.table import BENCHMARKS as SETS
from densevl.recipes.catalogue.published import BENCHMARKS
from tools.pages import replaced

PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"


def datasets() -> str:
    """Return one row per benchmark and task."""
    lines = ["| name | task | files below its folder | images |", "|---|---|---|---|"]
    for (name, task), own in SETS.items():
        files = "; ".join(f"`{part}`" for part in own.files)
        lines.append(f"| {name} | {task} | {files} | {'' if own.expected is None else f'{own.expected:,}'} |")
    return "\n".join(lines)


def rows() -> str:
    """Return one row per recipe, model and refinement, with the mIoU in per cent that its paper reports."""
    lines = [f"| recipe | model | {' | '.join(BENCHMARKS)} |", "|---" * (len(BENCHMARKS) + 2) + "|"]
    for recipe, model, refine in papers.rows():
        figures = (papers.published(recipe, name, model, refine) for name in BENCHMARKS)
        cells = ("-" if figure is None else f"{figure:.1f}" for figure in figures)
        lines.append(f"| `{recipe}`{f', refine={refine}' if refine else ''} | {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """Return the page with new tables."""
    for name, table in (("datasets", datasets()), ("rows", rows())):
        start, end = f"<!-- {name}: python -m tools.evaluation_tables -->", f"<!-- /{name} -->"
        text = replaced(text, f"{start}\n\n{table}\n\n{end}", start, end)
    return text


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
