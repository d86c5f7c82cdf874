"""Analyses as files: analyses.html with findings, charts and tables, analyses.json, and a CSV file a table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from densevl import __version__
from densevl.evaluation.analyses.base import Analysis, Finding
from densevl.evaluation.analyses.run import Analyses
from densevl.evaluation.report.page import page
from densevl.evaluation.report.results import as_csv, as_plain
from densevl.files import atomic_write_all, json_text

TABLES = (
    *("vocabulary_expansion", "vocabulary_expansion_greediest_distractors", "background_reliance"),
    *("corruption_robustness", "object_size", "object_size_two_classes_in_a_photo", "object_size_words_in_a_sentence"),
    *("written_words", "association_of_attributes", "unknown_classes", "unknown_classes_by_class"),
    *("swapped_backgrounds", "swapped_backgrounds_by_class", "agreement_of_views"),
    "agreement_of_views_where_the_views_differ",
)
FILES = ("analyses.json", "analyses.html", *(f"{name}.csv" for name in TABLES))


def write(found: Analyses, folder: str | Path) -> list[Path]:
    """Write analyses; returns the paths, the page first.

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
            name = re.sub(r"\W+", "_", f"{analysis.name} {title}".strip().lower())
            table = (list(row.values()) for row in rows)
            files[f"{name}.csv"] = as_csv([list(rows[0]), *table])
    return atomic_write_all({Path(folder) / name: content for name, content in files.items()})


def summary(found: Analyses) -> Iterator[tuple[str, Finding]]:
    """Findings with the name of their analysis: first those with advice."""
    every = [(analysis.name, finding) for analysis in found.done for finding in analysis.findings]
    yield from sorted(every, key=lambda pair: not pair[1].advice)


def facts(found: Analyses) -> dict[str, Any]:
    """All that was found, ready for JSON; shares are 0..1, None where there was nothing to count."""
    return {
        "title": found.title,
        "about": found.about,
        "densevl": __version__,
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
