"""Measured rows as a table, for the page and the benchmark's own output."""

from __future__ import annotations

from typing import Any

from densevl.recipes import names

BASELINE = "maskclip"
"""Recipes above this one's mIoU are marked."""
COLUMNS = ("recipe", "mIoU", f"above `{BASELINE}`", "ms/image", "twice the side", "true outlines")


def markdown(result: dict[str, Any]) -> str:
    """Return the table, in the catalogue's order; recipes that beat the baseline are marked."""
    rows = {name: result["recipes"][name] for name in names() if name in result["recipes"]}
    bar = rows.get(BASELINE, {}).get("miou", float("inf"))
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name, row in rows.items():
        if "refused" in row:
            lines.append(f"| `{name}` | does not run: {row['refused']} | | | | |")
            continue
        cells = (f"{row['miou']:.1f}", "yes" if row["miou"] > bar else "", f"{row['ms']:.0f}", f"{row['large']:.1f}")
        truth = f"{row['truth']:.1f}" if "truth" in row else ""
        lines.append(f"| `{name}` | {' | '.join(cells)} | {truth} |")
    return "\n".join(lines) + "\n"
