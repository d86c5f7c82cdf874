"""The table of docs/export.md, recipe x format with the largest difference to the model: python -m tools.export_table

It exports every recipe with `mini`, which takes some minutes, and stores the results in docs/export.json; --page writes
the page from that file alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

from densevl import load_backbone, recipes
from densevl.errors import DensevlError
from densevl.exporting import checking, files, graph
from tools.pages import replaced

DOCS = Path(__file__).parents[1] / "docs"
PAGE, RECORD = DOCS / "export.md", DOCS / "export.json"
START, END = "<!-- table: python -m tools.export_table -->", "<!-- /table -->"


def measured(model: str, name: str | None) -> dict[str, float | str]:
    """Return the largest difference in each format, or why there is none."""
    backbone = load_backbone(model, device="cpu")
    recipe = recipes.get(name) if name else None
    try:
        program = graph.capture(backbone, recipe)
    except DensevlError as error:
        return {"reason": str(error).split("cannot be exported: ")[-1]}
    found: dict[str, float | str] = {}
    for kind in files.FORMATS:
        if not all(map(find_spec, files.NEEDS[kind])):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = files.path_of(Path(folder, "model"), kind)
            try:
                files.save(program, kind, path, graph.facts(backbone, recipe))
                rows = checking.compare(backbone, recipe, files.runner(path, kind))
                found[kind] = max(row.difference for row in rows)
            except DensevlError as error:
                found[kind] = str(error)
    return found


def page(text: str) -> str:
    """Return the page with its table from the record."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    lines = ["| recipe | ONNX | torch | OpenVINO |", "|---|---|---|---|"]
    for name, found in record.items():
        cells = [found.get(kind, "") for kind in ("onnx", "torch", "openvino")]
        shown = [f"{cell:.1e}" if isinstance(cell, float) else cell for cell in cells]
        lines.append(
            f"| {name} | {' | '.join(shown)} |" if "reason" not in found else f"| {name} | {found['reason']} | | |"
        )
    return replaced(text, "\n".join([START, *lines, END]), START, END)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="write the page from the record")
    parser.add_argument("--only", default="", help="recipes to measure again, with commas between")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = {f"`{name}`": ("mini", name) for name in recipes.names()} | {"the model `photo`": ("photo", None)}
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    for title, (model, name) in cases.items() if not given.page else ():
        if not given.only or (name or model) in given.only.split(","):
            record[title] = measured(model, name)
            print(title, record[title], file=sys.stderr, flush=True)
            ordered = {key: record[key] for key in cases if key in record}
            RECORD.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
