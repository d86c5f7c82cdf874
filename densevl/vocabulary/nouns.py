"""The word list for photos without labels: plain English nouns for things, stuff and surfaces."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from densevl.errors import ModelError
from densevl.vocabulary.labels import LabelSet

FILE = "vocabulary/words/nouns.txt"


@cache
def nouns() -> LabelSet:
    """Some 1,300 classes with synonyms: people, animals, plants, food, household, tools, vehicles, places, stuff.

    Raises:
        ModelError: this installation lacks the list.
    """
    path = Path(str(files("densevl").joinpath(FILE)))
    if not path.is_file():
        raise ModelError(f"this installation lacks its word list (densevl/{FILE}): reinstall densevl, or give words=")
    return LabelSet.parse(path)
