"""Classes in text: one per line, or a table with a column of names."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from densevl.errors import LabelError
from densevl.vocabulary.parsing import require_few, short
from densevl.vocabulary.reading.data import in_order
from densevl.vocabulary.reading.notes import Notes
from densevl.vocabulary.reading.strings import split

NAMING = (
    *("display_name", "displayname", "class_name", "classname", "category_name", "label_name", "name", "names"),
    *("class", "classes", "label", "labels", "category", "categories"),
)
"""Headings of a column of names, the clearest first."""
LONGEST = 1_000  # longest line that is searched for numbers, in characters
_NUMBERING = frozenset(
    {"id", "idx", "index", "no", "nr", "number", "class_id", "classid", "label_id", "labelid", "category_id"}
    | {"train_id", "trainid", "color", "colour", "rgb", "hex", "r", "g", "b", "red", "green", "blue"}
)
_ID = r"\d+|n\d{8}|/[mg]/\w+"
_FIRST = re.compile(rf"[\"']?({_ID})[\"']?(?:\s*[:.,;)=|\t]\s*|\s+[-\u2013]\s+|\s+)(?=\S)")
_LAST = re.compile(r"(?<=\S)(\s*[:,;=|\t]\s*|\s+)[\"']?(\d+(?:\.\d+)?|#[0-9a-fA-F]{6})[\"']?$")
_BULLET = re.compile(r"[-*+•]\s+")
_COLUMN_OF_IDS = re.compile(rf"\s*(?:{_ID}|-?\d*\.\d+|#[0-9a-fA-F]{{6}})?\s*")
_VOID = re.compile(r"_+(?:background|ignore|void|unlabell?ed)_+")  # as labelme writes them
_COLOURED = (
    r"(?P<name>[^:]+):(?P<colour>\d+,\d+,\d+):[^:]*:[^:]*",
    r"(?P<name>[^,\d][^,]*?)\s*,\s*(?P<colour>\d+\s*,\s*\d+\s*,\s*\d+)",
    r"(?P<colour>\d+[,\s]+\d+[,\s]+\d+)[,\s]+(?P<name>[^\d\s].*)",
)
"""Formats of lines with a class and its colour: CVAT's, class_dict.csv's and label_colors.txt's."""
_QUOTES = ("''", '""', "``", "\u201c\u201d", "\u2018\u2019", "\u00ab\u00bb")
_CODE = re.compile(r"<|\w+\s*=|.*[\[{(]$")


def classes_of_lines(text: str, notes: Notes, what: str) -> list[str]:
    """Read a class per line; a comma within a line means the same as "|", as in the class files of the papers.

    Lines that start with "#" are ignored, and so are numbers that all lines have before or after the class.

    Raises:
        LabelError: the text holds only numbers, code, or keys with values.
    """
    lines = _lines(text)
    require_few(lines)
    lines = [name for _, name in coloured(lines, _COLOURED[:1])] or lines
    if len(lines) == 1 and re.search(r"[,;]|\s\.\s", lines[0]):
        entries = split(lines[0], notes)
        if len(entries) > 1 and "," in lines[0]:
            notes.say(f"{what} has one line, taken for {len(entries)} labels")
        return entries
    if lines and _CODE.match(lines[0]):
        raise LabelError(f"{what} is not a list of classes: its first line is {short(lines[0])!r}; write one a line")
    if lines and (heading := _heading(lines[0])):
        if len(heading) > 1 and any(mark in lines[0] for mark in "\t,;"):
            return classes_of_table(text, notes, what)
        if len(lines) > 1:
            notes.say(f"the first line of {what}, {lines[0]!r}, is taken for a heading")
            lines = lines[1:]
    if lines and all(_BULLET.match(line) for line in lines):
        lines = [_BULLET.sub("", line, count=1) for line in lines]
    if lines and all(re.fullmatch(r"[\d\s.,;:]+", line) for line in lines):
        raise LabelError(f"{what} holds only numbers; give the names of the classes, one a line")
    lines = _unnumbered([line.rstrip(",; ") for line in lines], notes, what)
    numbered = [match[1] for line in lines if (match := _FIRST.match(line))]
    if len(numbered) > len(lines) / 2 and numbered[0] in ("0", "1"):
        notes.say(f"lines of {what} begin with numbers, but not all of them do, so these are kept", lines[0])
    if any(" # " in line for line in lines):
        notes.say(f'everything after " # " in a line of {what} is left out as a comment')
        lines = [line.partition(" # ")[0] for line in lines]
    if void := [line for line in lines if _VOID.fullmatch(line)]:
        notes.say("this stands for pixels without a class, and is left out", *void)
        lines = [line for line in lines if line not in void]
    if len(lines) > 1 and all(re.match(r"[^\s:][^:]*:\s+\S", line) and not line.startswith("not:") for line in lines):
        raise LabelError(
            f"{what} holds a colon in every line, as in {short(lines[0])!r}; write one class per line, other words for "
            "it after commas, or a dict in a .yaml file"
        )
    return [unquoted(line).replace(",", "|") for line in lines]


def coloured(lines: Sequence[str], forms: Sequence[str] = _COLOURED) -> list[tuple[str, str]]:
    """The colour, "128,64,128", and the class of each line, if all lines but a header row have both."""
    for form in forms:
        found = [re.fullmatch(form, line) for line in lines if len(line) <= LONGEST]
        headed = len(found) > 1 and found[0] is None
        matches = [match for match in found[headed:] if match is not None]
        if matches and len(matches) == len(lines) - headed:
            return [(re.sub(r"[,\s]+", ",", match["colour"]), match["name"].strip()) for match in matches]
    return []


def classes_of_table(text: str, notes: Notes, what: str, *, delimiter: str = "") -> list[str]:
    """The column of names in CSV or TSV: the only one without numbers, or one with a heading of `NAMING`.

    Raises:
        LabelError: there is no such column.
    """
    lines = _lines(text)
    require_few(lines)
    if not lines:
        return []
    mark = delimiter or max("\t;,", key=lambda mark: lines[0].count(mark))
    try:
        rows = [row for row in csv.reader(lines, delimiter=mark, skipinitialspace=True) if any(map(str.strip, row))]
    except csv.Error as error:
        raise LabelError(f"{what} cannot be read as a table: {error}") from error
    if max(map(len, rows)) == 1:
        return classes_of_lines("\n".join(row[0] for row in rows), notes, what)
    if len(rows) == 1:
        return classes_of_lines(lines[0], notes, what)
    heading = [_plain(cell) for cell in rows[0]]
    named = [heading.index(name) for name in NAMING if name in heading]
    body = rows[1:] if named else rows
    width = max(map(len, rows))
    columns = [[row[place].strip() if place < len(row) else "" for row in body] for place in range(width)]
    texts = [place for place, cells in enumerate(columns) if not all(map(_COLUMN_OF_IDS.fullmatch, cells))]
    able = [place for place in named if place in texts] or ([] if named or len(texts) != 1 else texts)
    if not able:
        listed = ", ".join(repr(short(cell)) for cell in rows[0][:8])
        raise LabelError(
            f"{what} has {width} columns and none that must be the classes ({listed}): call one 'name' in the first "
            "row, or give a file with one class per line"
        )
    cells = columns[able[0]]
    numbers = next((column for column in columns if all(map(str.isdecimal, column))), None)
    if numbers is not None and len(set(numbers)) == len(numbers):
        ordered = sorted(zip(map(int, numbers), cells, strict=True), key=lambda pair: pair[0])
        in_order(ordered, notes)
        cells = [cell for _, cell in ordered]
    return [re.sub("[,;]", "|", cell) for cell in cells]


def unquoted(text: str) -> str:
    """A text without the quotes around it."""
    text = text.strip()
    return text[1:-1].strip() if len(text) > 2 and text[0] + text[-1] in _QUOTES else text


def _lines(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _plain(cell: str) -> str:
    return re.sub(r"[\s-]+", "_", unquoted(cell).strip()).lower()


def _heading(line: str) -> list[str]:
    """The headings in a line that holds nothing else."""
    cells = [_plain(cell) for cell in re.split(r"[\t,;]" if re.search(r"[\t,;]", line) else r"\s+", line)]
    known = all(cell in NAMING or cell in _NUMBERING for cell in cells)
    return cells if known and any(cell in NAMING for cell in cells) else []


def _unnumbered(lines: Sequence[str], notes: Notes, what: str) -> list[str]:
    """Lines without the numbers that all of them have before or after the class, in the order of the numbers."""
    before, lines = _stripped(lines, _FIRST)
    after, lines = _stripped(lines, _LAST)
    whose = before or after
    numbers = [int(row[0]) for row in whose if row[0].isdecimal()]
    if len(numbers) == len(lines) and len(set(numbers)) == len(numbers) and numbers:
        ordered = sorted(zip(numbers, lines, strict=True), key=lambda pair: pair[0])
        counts = sorted(numbers)
        if counts in (list(range(len(counts))), list(range(1, len(counts) + 1))):
            if numbers != counts:
                notes.say(f"the classes of {what} are taken in the order of their numbers")
            return [line for _, line in ordered]
    if whose:
        notes.say(f"the numbers of {what}, such as {whose[0][0]!r} of {short(lines[0])!r}, are left out")
    return list(lines)


def _stripped(lines: Sequence[str], pattern: re.Pattern[str]) -> tuple[list[list[str]], list[str]]:
    """The part that all lines have in front (or behind), and the lines without it; empty if it may be in the names."""
    if any(len(line) > LONGEST for line in lines):
        return [], list(lines)
    found, left = [], []
    for line in lines:
        row = []
        while (match := pattern.match(line) if pattern is _FIRST else pattern.search(line)) is not None:
            row.append(match)
            line = line[match.end() :] if pattern is _FIRST else line[: match.start()]
        found.append(row)
        left.append(line)
    if not lines or not all(found):
        return [], list(lines)
    rows = [[match.group(1 if pattern is _FIRST else 2) for match in row] for row in found]
    numbers = sorted(int(row[0]) for row in rows if row[0].isdecimal())
    counted = numbers in (list(range(len(rows))), list(range(1, len(rows) + 1)))
    parted = all(row[0].group().strip(" \"'0123456789.#") for row in found)  # by a comma, a colon, a tab, ...
    palette = all(len(row) >= 3 for row in rows)
    ids = not any(row[0].isdecimal() for row in rows)
    alike = max(Counter(left).values()) > 1
    if alike or not (counted or ids or palette or (parted and len(rows) > 2) or (pattern is _FIRST and _rising(rows))):
        return [], list(lines)
    return rows, left


def _rising(rows: Sequence[Sequence[str]]) -> bool:
    numbers = [int(row[0]) for row in rows if row[0].isdecimal()]
    return len(numbers) == len(rows) > 2 and all(a < b for a, b in pairwise(numbers))
