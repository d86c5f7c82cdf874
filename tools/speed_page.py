"""docs/speed.md from docs/speed.json, which tools/bench.py and tools/bench_plans.py write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
JSON, PAGE = DOCS / "speed.json", DOCS / "speed.md"

HEAD = Path(__file__).with_name("speed_head.md").read_text(encoding="utf-8")


def markdown(found: dict[str, Any]) -> str:
    """Return the page."""
    lines = [HEAD]
    if "model" in found:
        lines += [
            "## Measured",
            "",
            "    python tools/bench.py --write",
            "",
            f"`{found['model']}`, {found['device']}, torch {found['torch']}. Times are CPU seconds on one thread,",
            f"medians of {found['rounds']}; the calls of a row take turns. The machine is shared: trust the ratios.",
            "**Of bare** is the time divided by (windows of the papers' protocol) x (a bare pass of open_clip).",
            "",
        ]
    if "bare" in found:
        row = found["bare"]
        lines += [
            f"The bare pass, {row['batch']} windows: ours {row['ours']:.2f} s, open_clip's own",
            f"{row['open_clip']:.2f} s (ratio {row['ours'] / row['open_clip']:.2f}); its matrix products alone",
            f"{row['products']:.2f} s, {row['products'] / row['ours']:.2f} of ours.",
            "",
        ]
    if "compile" in found:
        row = found["compile"]
        lines += [
            f"torch.compile, twelve runs of a block on {row['batch']} windows: {row['compiled']:.2f} s compiled,",
            f"{row['plain']:.2f} s plain. It is not offered: it needs a C++ compiler and recompiles for every shape.",
            "",
        ]
    titles = {
        "protocol": "The papers' protocol, exact: SCLIP, windows of 224 every 112",
        "vocabulary": "The same with 1 to 1,000 labels",
        "plans": "Windows and precision",
        "recipes": "Every recipe that borrows nothing, tiles",
    }
    for part, title in titles.items():
        if part in found:
            lines += [f"### {title}", "", *_table(found[part]), ""]
    if "peers" in found:
        lines += _peers(found["peers"])
    if "quality" in found:
        lines += _quality(found["quality"])
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| recipe | plan | precision | photo | labels | windows | tokens | seconds | of bare | extra MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        extra = "" if row["extra_mib"] is None else f"{row['extra_mib']:.0f}"
        size, ratio = f"{row['height']} x {row['width']}", f"{row['of_bare']:.2f}"
        cells = (row["recipe"], row["plan"], row["precision"], size, row["labels"], row["windows"], row["tokens"])
        lines.append("| " + " | ".join(map(str, (*cells, f"{row['seconds']:.2f}", ratio, extra))) + " |")
    return lines


def _quality(found: dict[str, Any]) -> list[str]:
    """Return one row per recipe, size and plan, with a column per precision."""
    lines = [
        "## What it costs in quality",
        "",
        "    python tools/bench_plans.py --write",
        "",
        f"`mini`, scenes in a style that training never saw ({found['images']} of one window, 0.3 as many of twice",
        "the side and pieces of those). The figures are mIoU with background in per cent, and tokens of a scene.",
        "Mini was trained on pictures of 64 and 96 px, so small windows suit it. Plans were compared on mini alone,",
        "not on a real CLIP, with the weights from before 29 November 2026.",
        "",
        "| recipe | pixels | plan | tokens | float32 | int8 | bfloat16 |",
        "|---|---|---|---|---|---|---|",
    ]
    cells: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in found["rows"]:
        key = (row["recipe"], *row["size"], row["plan"], row["tokens"])
        cells.setdefault(key, {})[row["precision"]] = row["miou"]
    for (recipe, height, width, plan, tokens), by in cells.items():
        figures = " | ".join(f"{by[name]:.1f}" if name in by else "" for name in ("float32", "int8", "bfloat16"))
        lines.append(f"| {recipe} | {height} x {width} | {plan} | {tokens} | {figures} |")
    return lines


def _peers(found: dict[str, Any]) -> list[str]:
    """Return one table of passes and one of photos, both relative to open_clip in the same run."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        "## Against other libraries",
        "",
        "    python tools/bench.py --peers --write",
        "",
        f"{found['machine']}; {versions}; one thread. Each library computes the image embedding of",
        f"{found['windows']} windows of 224 x 224 with the same random weights, in turn in one process. Times are CPU",
        f"seconds, median and least of {found['rounds']}; ratios are to open_clip. Faults are memory pages that the",
        "system had to fill again in a pass. Error is the relative error of the embedding (norms).",
        "",
        "| architecture | by | seconds | least | ratio | of the least | faults | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["passes"]:
        base = next(one for one in found["passes"] if one["model"] == row["model"])
        ratios = f"{row['seconds'] / base['seconds']:.2f} | {row['least'] / base['least']:.2f}"
        faults = "" if row["faults"] is None else f"{row['faults']:.0f}"
        cells = f"{row['seconds']:.2f} | {row['least']:.2f} | {ratios} | {faults} | {row['error']:.1e}"
        lines.append(f"| {row['model'].removeprefix('random:')} | {row['by']} | {cells} |")
    lines += [
        "",
        "The next table times SCLIP with densevl's default windows, from pixels to labels. **Of bare** divides that by",
        "bare passes of open_clip over the windows of the authors' protocol:",
        "",
        "| architecture | precision | photo | seconds | of bare | faults |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["photos"]:
        size = f"{row['height']} x {row['width']}"
        faults = "" if row["faults"] is None else f"{row['faults']:.0f}"
        cells = f"{row['precision']} | {size} | {row['seconds']:.2f} | {row['of_bare']:.2f} | {faults}"
        lines.append(f"| {row['model'].removeprefix('random:')} | {cells} |")
    lines += [
        "",
        "**Ratios differ between machines**, because libraries use a CPU differently. open_clip runs on torch, which",
        "uses MKL for float32, and MKL uses half of the vector unit of an AMD EPYC. Where it uses all of it, the three",
        "libraries are closer to each other.",
        "",
    ]
    return lines


def update(found: dict[str, Any]) -> None:
    """Merge new measurements into the record, and write the page again."""
    kept = json.loads(JSON.read_text(encoding="utf-8")) if JSON.exists() else {}
    JSON.write_text(json.dumps({**kept, **found}, indent=1) + "\n", encoding="utf-8")
    write_page()


def write_page() -> None:
    """Write the page again."""
    PAGE.write_text(markdown(json.loads(JSON.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    write_page()
