"""Analyses as files: analyses.html with charts and tables, analyses.json, and a CSV file each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from densevl.evaluation.analyses import Analysis
from densevl.evaluation.report.charts import lines
from densevl.evaluation.report.page import STYLE
from densevl.files import atomic_write_all

Cell = str | int | float


def write(analyses: Sequence[Analysis], folder: str | Path, title: str) -> list[Path]:
    """Write analyses; returns the paths, the page first.

    Raises:
        OutputError: the folder cannot be written.
    """
    body = "".join(_section(analysis) for analysis in analyses)
    name = escape(title)
    html = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
        f"<h1>{name}</h1>{body}\n</html>\n"
    )
    facts = [
        {"name": analysis.name, "text": analysis.text, "series": analysis.series, "rows": _plain(analysis.rows)}
        for analysis in analyses
    ]
    files = {
        Path(folder) / "analyses.html": html.encode(),
        Path(folder) / "analyses.json": (json.dumps(facts, indent=1) + "\n").encode(),
    }
    for analysis in analyses:
        files[Path(folder) / f"{analysis.name.lower().replace(' ', '_')}.csv"] = _csv(analysis.rows)
    return atomic_write_all(files)


def _section(analysis: Analysis) -> str:
    head = list(analysis.rows[0])
    cells = "".join(f"<th{_number(key != head[0])}>{escape(key)}</th>" for key in head)
    body = "".join(
        "<tr>" + "".join(f"<td{_number(key != head[0])}>{_cell(row[key])}</td>" for key in head) + "</tr>"
        for row in analysis.rows
    )
    chart = lines(analysis.series, analysis.across, "mIoU") if analysis.series else ""
    intro = f'<p class="soft">{escape(analysis.text)}</p>'
    return f"<h2>{escape(analysis.name)}</h2>{intro}{chart}<table><tr>{cells}</tr>{body}</table>"


def _number(right: bool) -> str:
    return ' class="n"' if right else ""


def _cell(value: Cell) -> str:
    if isinstance(value, str):
        return escape(value)
    if value != value:
        return "-"
    return str(value) if isinstance(value, int) else f"{100 * value:.1f}"


def _plain(rows: Sequence[dict[str, Cell]]) -> list[dict[str, Cell | None]]:
    return [{key: None if value != value else value for key, value in row.items()} for row in rows]


def _csv(rows: Sequence[dict[str, Cell]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(list(rows[0]))
    writer.writerows(list(row.values()) for row in rows)
    return text.getvalue().encode()
