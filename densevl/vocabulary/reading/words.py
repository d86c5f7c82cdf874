"""One label or word: quotes, entities and underscores cleaned, names of files and ids detected."""

from __future__ import annotations

import html
import os
import re

from densevl.errors import LabelError
from densevl.images import EXTENSIONS
from densevl.vocabulary.parsing import clean, short
from densevl.vocabulary.reading.files import ENDINGS
from densevl.vocabulary.reading.lines import unquoted
from densevl.vocabulary.reading.notes import Notes
from densevl.vocabulary.reading.strings import is_abbreviated

_ADDRESS = re.compile(r"(?:https?|ftp|s3|gs|file)://|[a-zA-Z]:\\|~?\.{0,2}/\w+(?:/|.*\.\w{1,6}$)")
MID = re.compile(r"/[mg]/\w+")
_NAMELESS = re.compile(r"n\d{8}|(?:label|class|cls|category)[ _-]?\d+", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d+|#x[0-9a-f]+|[a-z]\w+);", re.IGNORECASE)


def tidied(text: object, notes: Notes, what: str = "label") -> str:
    """Clean a label of quotes, entities and a trailing full stop, which is noted.

    Raises:
        LabelError: see `parsing.clean`; or it is the name of a file, or an id of Open Images.
    """
    word = clean(text, what)
    if (plain := unescaped(word)) != word:
        notes.say("HTML entities are read as the characters they stand for", word)
        word = plain
    if (bare := unquoted(word)) != word:
        notes.say("the quotes around a label are left out", word)
        word = bare
    elif word[0] in '"“' and not word.endswith(('"', "”")):
        raise LabelError(
            f"label {short(word)!r} begins with a quote that does not end; a comma within quotes separates labels"
        )
    elif (word[0] == "[" and "]" not in word) or (word[-1] == "]" and "[" not in word):
        raise LabelError(f"label {short(word)!r} is a part of a list; give all of it, or labels with commas between")
    if word.endswith(".") and len(word.split()) <= 3 and not is_abbreviated(word) and word.strip("."):
        notes.say("the full stop at the end of a label is left out", word)
        word = word.rstrip(". ")
    _no_name_of_a_file(word)
    return word


def unescaped(text: str) -> str:
    """Replace "&amp;" and other entities by their characters."""
    return html.unescape(text) if _ENTITY.search(text) else text


def scored(word: str, notes: Notes) -> str:
    """A word in the form that models read: "traffic_light" becomes two words."""
    if _NAMELESS.fullmatch(word) or (word.isascii() and not re.search("[A-Za-z]", word)):
        notes.say("a number or an id, which no model knows by sight; give the name of the class", word)
    elif "_" in word.strip("_"):
        notes.say("underscores are read as spaces", word)
        word = " ".join(word.replace("_", " ").split())
    return word


def names_file(word: str) -> bool:
    """Whether a word looks like a path or an address."""
    ending = os.path.splitext(word)[1].lower()
    return ending in EXTENSIONS or ending in ENDINGS or bool(_ADDRESS.match(word))


def _no_name_of_a_file(word: str) -> None:
    if MID.fullmatch(word):
        raise LabelError(f"label {short(word)!r} is an id of Open Images; give the name of the class")
    ending = os.path.splitext(word)[1].lower()
    if ending in EXTENSIONS:
        raise LabelError(
            f"label {short(word)!r} is the name of an image; one that stands for a class is a pathlib.Path"
        )
    if names_file(word):
        raise LabelError(f"label {short(word)!r} is the name of a file; a file of labels is given alone, by its path")
