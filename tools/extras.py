"""The table of extras in docs/models.md, from setup.py: python -m tools.extras."""

from __future__ import annotations

import ast
from pathlib import Path

from tools.pages import replaced

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
START, END = "<!-- extras: python -m tools.extras -->", "<!-- /extras -->"


def extras() -> dict[str, tuple[str, list[str]]]:
    """Return the purpose and packages of each extra in setup.py, without running setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (found,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXTRAS"
    )
    return ast.literal_eval(found)


def page(text: str) -> str:
    """Return the page with its table from setup.py."""
    rows = [f"| `{name}` | {purpose} |" for name, (purpose, _) in extras().items()]
    return replaced(text, "\n".join([START, "| extra | brings |", "|---|---|", *rows, END]), START, END)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
