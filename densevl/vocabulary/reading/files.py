"""Files of words: their text, whatever program wrote it, and the data in the text."""

from __future__ import annotations

import codecs
import json
import os
import re
from pathlib import Path
from typing import Any, Final

import yaml

from densevl.errors import DensevlError, LabelError, suggest
from densevl.files import shown
from densevl.images import kind_of
from densevl.vocabulary.parsing import short

MAX_BYTES: Final = 2**26
MAX_YAML: Final = 2**20  # takes about a second to read
ENDINGS: Final = frozenset(
    {".txt", ".names", ".classes", ".labels", ".list", ".lst", ".json", ".jsonl", ".yaml", ".yml", ".csv", ".tsv"}
    | {".pbtxt", ".data", ".cfg", ".toml", ".xml", ".xlsx", ".npy", ".npz", ".md"}
)
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BRACKETS = {"[": "]", "{": "}"}
_SETTINGS = re.compile(r"^(names|classes|class_names|id2label|categories)[ \t]*:", re.MULTILINE)


def text_of(path: Path, what: str, error: type[DensevlError] = LabelError) -> str:
    """The text of a file, in UTF-8 or the encoding of its byte order mark.

    Args:
        path: of the file. what: its name in messages, such as "labels file". error: the error to raise.

    Raises:
        LabelError, or the error given: it is missing, a folder, too large, a picture or other binary file, or in
            another encoding.
    """
    what = f"{what} {shown(path)}"
    try:
        if path.is_dir():
            raise error(f"{what} is a folder; give the file in it that lists them")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as reason:
        near = suggest(path.name, os.listdir(path.parent)[:2000]) if path.parent.is_dir() else ": nor is its folder"
        raise error(f"{what} cannot be read: it is not there{near}") from reason
    except (OSError, ValueError) as reason:
        raise error(f"{what} cannot be read: {getattr(reason, 'strerror', None) or reason}") from reason
    if len(data) > MAX_BYTES:
        raise error(f"{what} has more than {MAX_BYTES:,} bytes; give a shorter list")
    encoding = next((name for mark, name in _ENCODINGS if data.startswith(mark)), "utf-8")
    kind = kind_of(data[:512])
    try:
        text = data.decode(encoding)
    except ValueError as reason:
        problem = f"{kind}, not text" if kind else "not text in UTF-8: save it again in that encoding"
        raise error(f"{what} is {problem}") from reason
    if "\0" in text or kind.startswith("a picture"):
        raise error(f"{what} is {kind or 'a binary file'}, not text")
    return text


def data_of(text: str, what: str, *, ending: str = "", error: type[DensevlError] = LabelError) -> Any:
    """The data of a text that is JSON or YAML, by its ending or by its first characters; None if it is neither.

    Raises:
        LabelError, or the error given: it is malformed, or YAML that is too long.
    """
    text = text.strip()
    bracketed = text[:1] in _BRACKETS and text.endswith(_BRACKETS[text[:1]])
    try:
        if ending == ".json" or bracketed:
            try:
                return json.loads(text)
            except ValueError:
                if ending == ".json":
                    raise
        if not (bracketed or ending in (".yaml", ".yml") or _SETTINGS.search(text)):
            return None
        if len(text) > MAX_YAML:
            raise error(f"{what} has {len(text):,} characters of YAML; the limit is {MAX_YAML:,}: give JSON")
        SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, SafeLoader)):
            raise ValueError("aliases (*name) are not read")  # a few lines of them can expand to millions
        return yaml.load(text, SafeLoader)  # noqa: S506  safe, both of them
    except (ValueError, RecursionError, yaml.YAMLError) as reason:
        form = "JSON" if ending == ".json" or isinstance(reason, RecursionError) else "JSON or YAML"
        raise error(f"{what} cannot be read as {form}: {short(' '.join(str(reason).split()), 120)}") from reason


def read_data(path: Path, what: str, error: type[DensevlError] = LabelError) -> Any:
    """The data of a JSON or YAML file.

    Raises:
        LabelError, or the error given: see `text_of` and `data_of`; or it is neither.
    """
    text = text_of(path, what, error)
    ending = path.suffix.lower()
    ending = ending if ending in (".yaml", ".yml") else ".json"
    return data_of(text, f"{what} {shown(path)}", ending=ending, error=error)
