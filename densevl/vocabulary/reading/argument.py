"""Deciding what a labels argument is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from densevl.errors import DensevlError, LabelError
from densevl.files import shown
from densevl.images.addresses import local
from densevl.vocabulary.parsing import require_few, short
from densevl.vocabulary.prompts import is_prompt
from densevl.vocabulary.reading.data import Content, classes_of
from densevl.vocabulary.reading.files import ENDINGS, data_of, text_of
from densevl.vocabulary.reading.lines import classes_of_lines, classes_of_table, unquoted
from densevl.vocabulary.reading.notes import Notes
from densevl.vocabulary.reading.strings import split
from densevl.vocabulary.reading.words import MID, unescaped

WHAT = "labels file"
_REMOTE = re.compile(r"[a-z][a-z0-9+]+:/", re.IGNORECASE)
_PATH = re.compile(r"~|\.{0,2}/\S+/|\.{1,2}/|[a-zA-Z]:\\")


def read(labels: Any, notes: Notes) -> Content:
    """The classes in an argument, as a list of entries or a dict of name to words.

    Args:
        labels: data, see `data.classes_of`; the path of a file; or a string, which is a file if one of this name exists
            or it looks like a path, data if it is in brackets, and otherwise comma-separated labels.

    Raises:
        LabelError: a file does not exist or is a folder, or these are not labels.
    """
    if isinstance(labels, os.PathLike):
        return read_file(Path(labels), notes)
    if isinstance(labels, str):
        return _read_string(labels, notes)
    if isinstance(labels, (set, frozenset)):
        raise LabelError("labels are a set, which has no order, and classes are numbered; give a list")
    if isinstance(labels, (bytes, bytearray)):
        raise LabelError(f"labels are {type(labels).__name__}; give strings")
    if hasattr(labels, "columns"):
        raise LabelError('labels are a table; give its column of names as a list: table["name"].tolist()')
    if is_prompt(labels) and not (isinstance(labels, np.ndarray) and labels.dtype.kind in "UO"):
        raise LabelError(f"labels are one {type(labels).__name__}; put an image or a vector into a list or a dict")
    return classes_of(labels, notes, "labels")


def read_file(path: Path, notes: Notes) -> Content:
    """The classes in a file: JSON, YAML, a table, or a class per line.

    Raises:
        LabelError: it cannot be read, or holds something else.
    """
    text, ending = text_of(path, WHAT), path.suffix.lower()
    notes.file = what = f"{WHAT} {shown(path)}"
    data = data_of(text, what, ending=ending)
    if data is not None and not (isinstance(data, str) and ending in (".yaml", ".yml")):
        return classes_of(data, notes, what)
    if ending == ".json":
        raise LabelError(f"{what} holds null; it needs a list of labels or a dict")
    found = (
        classes_of_table(text, notes, what, delimiter="\t" * (ending == ".tsv"))
        if ending in (".csv", ".tsv")
        else classes_of_lines(text, notes, what)
    )
    if not found:
        raise LabelError(f"{what} holds no labels; write one class per line")
    return found


def words_in(text: str | os.PathLike[str], what: str, error: type[DensevlError]) -> list[str]:
    """Comma-separated words, or those in a file, for arguments in which nothing is guessed.

    Args:
        text: the words or the file. what: its name in messages. error: the error to raise.

    Raises:
        The error given: a file cannot be read, or words are not separated by commas.
    """
    notes = Notes()
    try:
        content = read(text, notes)
    except LabelError as reason:
        raise error(f"{what}: {reason}") from reason
    if notes.warnings or isinstance(content, Mapping) or not all(isinstance(word, str) for word in content):
        raise error(
            f'{what} {short(os.fspath(text))!r} is not words with commas between, "sky,wall", or a file of them'
        )
    return list(content)


def _read_string(text: str, notes: Notes) -> Content:
    if not text.strip():
        return []
    if MID.fullmatch(text.strip()):
        return [text]
    if (path := _path_of(text, notes)) is not None:
        return read_file(path, notes)
    if unescaped(text) != text:
        notes.say("HTML entities are read as the characters they stand for", text)
        text = unescaped(text)
    data = data_of(text, "labels") if text.strip()[0] in "[{" else None
    if data is not None:
        return classes_of(data, notes, "labels")
    plain = unquoted(text)
    if not any(quote in plain for quote in "\"'"):
        text = plain
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    require_few(lines)
    if len(lines) > 1 and not all(line.endswith(",") for line in lines[:-1]):
        entries = classes_of_lines("\n".join(lines), notes, "labels")
        notes.say(f"{len(entries)} labels are read, one a line; a comma within a line separates words for one class")
        return entries
    return split(" ".join(lines) if len(lines) > 1 else text, notes)


def _path_of(text: str, notes: Notes) -> Path | None:
    """The file that a string names, if it does."""
    name = text.strip()
    path = Path(os.path.expanduser(local(name.removeprefix("@"))))
    if name.startswith("@"):
        return path
    if _REMOTE.match(name) and not name.startswith("file:/"):
        raise LabelError(f"labels {short(name)!r} are an address; download the file and give its path")
    try:
        there, folder = path.is_file(), path.is_dir()
    except (OSError, ValueError):  # too long for a name, or a null byte
        return None
    if there or (path.suffix.lower() in ENDINGS and "," not in name and "\n" not in name) or _PATH.match(name):
        return path
    if folder and (os.sep in name or name in (".", "..")):
        return path
    if folder:
        notes.say("this is the name of a folder here, and is taken for a word", name)
    elif "/" in name and " " not in name and path.parent.is_dir() and "," not in name and path.parent != Path("/"):
        return path
    return None
