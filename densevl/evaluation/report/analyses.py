"""Analyses as files: analyses.html with findings, charts and tables, analyses.json, and a CSV file per table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from densevl import __version__, fitted
from densevl.errors import OutputError
from densevl.evaluation.analyses.base import Analysis, Finding
from densevl.evaluation.analyses.run import Analyses
from densevl.evaluation.outcome import versions
from densevl.evaluation.report import results
from densevl.evaluation.report.page import page
from densevl.evaluation.report.results import as_csv, as_plain
from densevl.files import atomic_write_all, json_text, shown

TABLES = (
    *("vocabulary_expansion", "vocabulary_expansion_greediest_distractors", "background_reliance"),
    *("corruption_robustness", "object_size", "object_size_two_classes_in_a_photo", "object_size_words_in_a_sentence"),
    *("written_words", "association_of_attributes", "unknown_classes", "unknown_classes_by_class"),
    *("swapped_backgrounds", "swapped_backgrounds_by_class", "agreement_of_views"),
    "agreement_of_views_where_the_views_differ",
)
FILES = ("analyses.json", "analyses.html", *(f"{name}.csv" for name in TABLES))


def claim(folder: str | Path, asked: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Refuse a folder that holds somebody else's files, or analyses of something else.

    Args:
        asked: see `asking`.

    Raises:
        OutputError: the folder holds such files, and `overwrite` is False.
    """
    results.claim(folder, *FILES, overwrite=overwrite)
    before = _earlier(folder)
    if overwrite or before is None:
        return
    known = before.get("asked")
    difference = fitted.differing(known, asked) if isinstance(known, dict) else "it is unknown of what"
    if difference:
        raise OutputError(
            f"{shown(folder)} holds other analyses ({difference}); name another --out, or start over with --overwrite"
        )


def write(found: Analyses, folder: str | Path) -> list[Path]:
    """Write analyses, and remove the tables of earlier ones; returns the paths, the page first.

    Raises:
        OutputError: the folder cannot be written.
    """
    files = {
        "analyses.html": page(
            "analyses",
            title=found.title,
            about=found.about,
            analyses=found.done,
            left=found.left,
            summary=list(summary(found)),
        ),
        "analyses.json": (json_text(facts(found), indent=1) + "\n").encode(),
    }
    for analysis in found.done:
        for title, rows in analysis.tables.items():
            table = (list(row.values()) for row in rows)
            files[_table(analysis.name, title)] = as_csv([list(rows[0]), *table])
    old = _tables(_earlier(folder) or {}).difference(files)
    written = atomic_write_all({Path(folder) / name: content for name, content in files.items()})
    for name in old.intersection(FILES):
        Path(folder, name).unlink(missing_ok=True)
    return written


def _table(analysis: str, title: str) -> str:
    """File name of a table."""
    return re.sub(r"\W+", "_", f"{analysis} {title}".strip().lower()) + ".csv"


def _earlier(folder: str | Path) -> dict[str, Any] | None:
    """The content of the folder's analyses.json; None if there is none that can be read."""
    try:
        found = json.loads(Path(folder, "analyses.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _tables(earlier: Mapping[str, Any]) -> set[str]:
    """File names of the tables that an analyses.json lists."""
    names = set()
    try:
        for own in earlier.get("analyses", ()):
            names |= {_table(own["name"], "" if title == own["name"] else title) for title in own["tables"]}
    except (KeyError, TypeError):  # not written by densevl
        return set()
    return names


def summary(found: Analyses) -> Iterator[tuple[str, Finding]]:
    """Findings with the name of their analysis, those with advice first."""
    every = [(analysis.name, finding) for analysis in found.done for finding in analysis.findings]
    yield from sorted(every, key=lambda pair: not pair[1].advice)


def facts(found: Analyses) -> dict[str, Any]:
    """All results, ready for JSON; shares are 0..1, None where there was nothing to count."""
    return {
        "title": found.title,
        "about": found.about,
        "densevl": __version__,
        "versions": versions(),
        "asked": as_plain(found.asked),
        "used": as_plain(found.used),
        "analyses": [_facts(analysis) for analysis in found.done],
        "left out": [{"name": own.name, "reason": own.reason} for own in found.left],
    }


def _facts(analysis: Analysis) -> dict[str, Any]:
    return {
        "name": analysis.name,
        "text": analysis.text,
        "findings": [{"text": own.text, "advice": own.advice or None} for own in analysis.findings],
        "tables": {title or analysis.name: as_plain(rows) for title, rows in analysis.tables.items()},
        "charts": [
            as_plain({"across": chart.across, "up": chart.up, "named": chart.named, "series": chart.series})
            for chart in analysis.charts
        ],
    }
