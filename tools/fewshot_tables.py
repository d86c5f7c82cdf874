"""The tables of docs/fewshot.md from files of `tools.bench_fewshot --json`: python -m tools.fewshot_tables FILE...

A table for each level has a column for each vocabulary: the figures for each number of shots and, in brackets, the
largest spread over choices of examples. Then a table advises on the head: for each number of shots, how far a head is
below the best of the table, as mean over vocabularies of one level and as worst. It includes words alone, which may be
best. Rows of several files are merged; if head and vocabulary repeat, the last row counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

WORDS, TIME = "words alone", "ms"
TITLES = {
    "trained style": "known nouns, trained style",
    "known": "known nouns, new style",
    "new": "new nouns, new style",
}
Row = Mapping[str, float]
Table = dict[str, dict[str, Row | float]]
"""Return rows by vocabulary and head."""


def read(paths: Sequence[Path]) -> dict[str, Table]:
    """Return the tables by level."""
    levels: dict[str, Table] = {}
    for path in paths:
        for place, rows in json.loads(path.read_text(encoding="utf-8")).items():
            vocabulary, level = place.rsplit(", ", 1)
            levels.setdefault(level, {}).setdefault(vocabulary, {}).update(rows)
    return levels


def shots_of(table: Table) -> list[str]:
    """Return the numbers of shots that every row has, ascending."""
    rows = [row for column in table.values() for row in column.values() if isinstance(row, Mapping)]
    common = set.intersection(*({name for name in row if name.isdigit()} for row in rows))
    return sorted(common, key=int)


def heads_of(table: Table) -> list[str]:
    """Return all heads, in the order of the files."""
    return list(dict.fromkeys(head for column in table.values() for head in column if head != WORDS))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace(" --- ", "---").replace("---| ", "---|")


def figures(table: Table) -> str:
    """Return the figures of each head on each vocabulary."""
    shots, columns = shots_of(table), list(table)

    def cell(row: Row | float | None) -> str:
        if row is None:
            return ""
        if not isinstance(row, Mapping):
            return f"{row:.1f}"
        spread = max(row[f"spread {count}"] for count in shots)
        return f"{' / '.join(f'{row[count]:.1f}' for count in shots)} ({spread:.0f})"

    rows = [[head, *(cell(table[name].get(head)) for name in columns)] for head in [WORDS, *heads_of(table)]]
    header = ["head", *(TITLES.get(name, name) for name in columns)]
    return markdown(header, [[_code(head), *cells] for head, *cells in rows])


def below(table: Table) -> dict[str, dict[str, tuple[float, float]]]:
    """Return how far each head is below the best one: mean and worst over the vocabularies, by head and shots.

    Vocabularies that lack a head are left out for all, and heads that lack most of them are left out.
    """
    shots, heads = shots_of(table), [WORDS, *heads_of(table)]
    heads = [head for head in heads if 2 * sum(head in column for column in table.values()) > len(table)]
    whole = [column for column in table.values() if all(head in column for head in heads)]

    def figure(row: Row | float, count: str) -> float:
        return row[count] if isinstance(row, Mapping) else row

    found: dict[str, dict[str, tuple[float, float]]] = {head: {} for head in heads}
    for count in shots:
        gaps: dict[str, list[float]] = {head: [] for head in heads}
        for column in whole:
            best = max(figure(column[head], count) for head in heads)
            for head in heads:
                gaps[head].append(best - figure(column[head], count))
        for head in heads:
            found[head][count] = (statistics.mean(gaps[head]), max(gaps[head]))
    return found


def choice(table: Table) -> str:
    """Return the table that advises on the head; the best of each column is bold."""
    found, shots = below(table), shots_of(table)
    least = {count: min(own[count][0] for own in found.values()) for count in shots}

    def cell(head: str, count: str) -> str:
        mean, worst = found[head][count]
        told = f"{mean:.1f}, {worst:.1f}"
        return f"**{told}**" if mean == least[count] else told

    def time(head: str) -> str:
        own = [row[TIME] for column in table.values() if isinstance(row := column.get(head), Mapping)]
        return f"{statistics.median(own) / 1000:.2g}" if own else "0"

    header = ["head", *(f"{count} example{'s' * (count != '1')}" for count in shots), "seconds"]
    return markdown(header, [[_code(head), *(cell(head, count) for count in shots), time(head)] for head in found])


def _code(head: str) -> str:
    return head if head == WORDS else f"`{head}`"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="of tools.bench_fewshot --json")
    given = parser.parse_args()
    for level, table in read(given.files).items():
        print(f"{level}:\n\n{figures(table)}\n")
        print(f"{level}, points below the best, mean and worst:\n\n{choice(table)}\n")


if __name__ == "__main__":
    main()
