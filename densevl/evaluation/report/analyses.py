"""Analyses as files: analyses.html with charts and tables, analyses.json, and a CSV file each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densevl import __version__
from densevl.evaluation.analyses import Analysis
from densevl.evaluation.report.page import page
from densevl.evaluation.report.results import as_csv, as_plain
from densevl.files import atomic_write_all, json_text

FILES = ("analyses.json", "analyses.html")


def write(analyses: Sequence[Analysis], folder: str | Path, title: str) -> list[Path]:
    """Write analyses; returns the paths, the page first.

    Raises:
        OutputError: the folder cannot be written.
    """
    rows = [
        {"name": analysis.name, "text": analysis.text, "series": analysis.series, "rows": as_plain(analysis.rows)}
        for analysis in analyses
    ]
    facts = {"title": title, "densevl": __version__, "analyses": rows}
    files = {
        "analyses.html": page("analyses", title=title, analyses=analyses),
        "analyses.json": (json_text(facts, indent=1) + "\n").encode(),
    }
    for analysis in analyses:
        table = (list(row.values()) for row in analysis.rows)
        files[f"{analysis.name.lower().replace(' ', '_')}.csv"] = as_csv([list(analysis.rows[0]), *table])
    return atomic_write_all({Path(folder) / name: content for name, content in files.items()})
