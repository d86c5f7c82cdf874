"""The table of recipes in README.md, by one command: python -m tools.recipes.readme [--measure].

What a row says of the method stands here; published figures are those of the catalogue, and the measured column is what
`tools.recipes.benchmark` left in docs/recipes.json. With --measure that is run first, for the recipes of the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from densevl.recipes import get

ROOT = Path(__file__).parents[2]
README, MEASURED = ROOT / "README.md", ROOT / "docs" / "recipes.json"
START, END = "<!-- recipes: python -m tools.recipes.readme -->", "<!-- /recipes -->"
COLUMNS = {"voc20": "VOC20", "cityscapes": "Cityscapes", "ade150": "ADE150"}
CAPTION = """\
mIoU in per cent. The first three columns are as *published*: ViT-B/16 with OpenAI weights unless the paper has others,
each paper's own protocol; not measured here. The last is *measured*, with `mini` and `mini-sam` on {images} rendered
scenes in a style that they never saw. It says nothing about photographs: `mini` was trained for value-only read-out."""
ROWS = {
    "vanilla": "as trained",
    "maskclip": "values only, skip and MLP kept",
    "maskclip_value": "values only",
    "clip_surgery": "v-v in a second stream over 6 blocks",
    "gem": "normalised v-v, k-k, q-q in a second stream over 6 blocks",
    "sclip": "q-q + k-k, skip and MLP kept",
    "clearclip": "q-q",
    "naclip": "k-k with a Gaussian neighbourhood",
    "resclip": "NACLIP and the maps of middle blocks; with text, a second pass",
    "sc_clip": "outliers replaced, likeness of a middle block, several sources",
    "cliper": "the maps of all blocks, every block as a source",
    "proxyclip": "another model's affinity (needs proxy)",
    "cass": "k-k with paired heads of another model (needs proxy)",
    "trident": "ProxyCLIP stitched, spread by SAM's attention (needs proxy, sam)",
    "corrclip": "another model's affinity within regions, region embeddings (needs proxy, regions)",
}


def block(measured: dict[str, Any]) -> str:
    """The part of README.md from marker to marker, both included."""
    lines = [START, "", f"| recipe | what it does | {' | '.join(COLUMNS.values())} | rendered |"]
    lines.append("|---" * (len(COLUMNS) + 3) + "|")
    for name, words in ROWS.items():
        source = get(name).source
        miou = source.miou if source is not None else {}
        cells = [f"{miou[key]:.1f}" if key in miou else "" for key in COLUMNS]
        row = measured["recipes"].get(name, {})
        cells.append(f"{row['miou']:.1f}" if "miou" in row else "")
        lines.append(f"| `{name}` | {words} | {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
    lines += ["", CAPTION.format(images=measured["images"]), "", END]
    return "\n".join(lines)


def replaced(text: str, new: str, start: str = START, end: str = END) -> str:
    """A page with the part between two markers replaced; `new` has the markers too.

    Raises:
        SystemExit: the page lacks the markers.
    """
    if start not in text or end not in text:
        raise SystemExit(f"the page lacks the markers {start} and {end}")
    head, rest = text.split(start, 1)
    return head + new + rest.split(end, 1)[1]


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure the recipes of the table first (minutes)")
    parser.add_argument("--print", action="store_true", help="print the block, and leave README.md as it is")
    given = parser.parse_args(arguments)
    if given.measure:
        command = [
            sys.executable,
            "-m",
            "tools.recipes.benchmark",
            "--json",
            str(MEASURED),
            "--recipes",
            ",".join(ROWS),
        ]
        subprocess.run(command, cwd=ROOT, check=True)
    new = block(json.loads(MEASURED.read_text(encoding="utf-8")))
    if given.print:
        print(new)
    else:
        README.write_text(replaced(README.read_text(encoding="utf-8"), new), encoding="utf-8")


if __name__ == "__main__":
    main()
