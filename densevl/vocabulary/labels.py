"""`LabelSet`: the user's classes, the strings that mean them, and strings that do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densevl.errors import LabelError
from densevl.vocabulary.parsing import as_list, clean, require_few, short
from densevl.vocabulary.prompts import Prompt, is_prompt, name_of
from densevl.vocabulary.prompts import parse as parse_prompt
from densevl.vocabulary.reading import Notes, read
from densevl.vocabulary.reading.data import Content
from densevl.vocabulary.reading.words import scored, tidied

RESERVED = "nothing"  # the name of pixels without a label in results
NOT = "not:"  # prefix of a string that a class is not


@dataclass(frozen=True)
class LabelSet:
    """Classes in order, each with the strings that mean it.

    Attributes:
        names: display name of each class, unique.
        synonyms: for each class, the strings scored for it; a pixel gets the class of its best string. They may be
            narrower words than the name, {"animal": ["cat", "dog"]}: a hierarchy, see `TextOptions.parents`. Some may
            be a `Prompt`, an image or a vector instead of a word.
        negatives: strings for things that look like a class; they compete, and a pixel they win is labelled nothing.
        warnings: guesses made while reading the labels, a sentence each. Two sets that differ only in this are equal.
    """

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...] = field(repr=False)
    negatives: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "synonyms", tuple(tuple(words) for words in self.synonyms))
        object.__setattr__(self, "warnings", tuple(self.warnings))
        if not self.names:
            raise LabelError('no labels; name at least one, such as --labels "cat,dog"')
        require_few(self.names)
        if len(self.names) != len(self.synonyms) or not all(self.synonyms):
            raise LabelError(
                f"{len(self.names)} names for {len(self.synonyms)} lists of strings; each needs one, not empty"
            )
        doubled = next((name for name, times in Counter(self.names).items() if times > 1), None)
        if doubled is not None:
            raise LabelError(f"label '{short(doubled)}' is given twice; names must differ")
        if RESERVED in self.names:
            raise LabelError(f"label '{RESERVED}' is what pixels without a label are called; choose another word")
        owner: dict[str, str] = {}
        for name, words in zip(self.names, self.synonyms, strict=True):
            for word in words:
                if word.casefold() in owner:
                    raise LabelError(
                        f"label '{short(word)}' is given twice (in '{short(owner[word.casefold()])}' and "
                        f"'{short(name)}'); each string belongs to one class"
                    )
                owner[word.casefold()] = name
        # A negative that is another class's string already competes.
        fresh = {word.casefold(): word for word in self.negatives if word.casefold() not in owner}
        object.__setattr__(self, "negatives", tuple(fresh.values()))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def queries(self) -> list[str]:
        """All strings that mean a class, class by class."""
        return [word for words in self.synonyms for word in words]

    @property
    def words(self) -> list[str]:
        """The `queries` that are words, not images or vectors."""
        return [word for word in self.queries if not isinstance(word, Prompt)]

    @property
    def query_classes(self) -> list[int]:
        """The class index of each string in `queries`."""
        return [index for index, words in enumerate(self.synonyms) for _ in words]

    def __add__(self, more: LabelSet) -> LabelSet:
        """These classes followed by others.

        Raises:
            LabelError: both have a name or a string.
        """
        return LabelSet(
            (*self.names, *more.names),
            (*self.synonyms, *more.synonyms),
            (*self.negatives, *more.negatives),
            (*self.warnings, *more.warnings),
        )

    def facts(self) -> dict[str, Any]:
        """Everything that distinguishes this set from others, ready for JSON."""
        return {"names": self.names, "synonyms": self.synonyms, "negatives": self.negatives}

    @classmethod
    def parse(cls, labels: LabelSet | str | Path | Sequence[Any] | Mapping[str, Any]) -> LabelSet:
        """Read labels in any form people write them.

        Args:
            labels: a list of strings, "car | truck" meaning two words for one class named "car", "dog | not: toy dog"
                a negative; a dict of name to words, or of numbers to names; a string "cat,dog"; or the path of a file
                with any ending: text with a class per line, synonyms after commas or "|", lines that start with "#"
                ignored; CSV or TSV with a column of names; JSON or YAML with a list or a dict, in which Hugging Face's
                id2label, COCO's categories and Ultralytics' names are found. Other tools' separators, and anything
                else that had to be guessed, are reported in `warnings`.
                In a list or a dict an image may stand for a class: a `pathlib.Path`, a PIL image, or uint8 RGB
                (H, W, 3); or an `Example`, a part of one, by its mask or box. So may a float vector (D,) of the
                model's joint space, or a `Vector`. A class may have several, and words too:
                {"mug": [Path("mug.jpg"), "cup"]}.

        Raises:
            ImageError: an image cannot be read.
            LabelError: labels are empty, repeated, too long or not strings, a class is negated itself, a list holds
                the name of a file, or a file is missing, unreadable or holds something else.
        """
        if isinstance(labels, LabelSet):
            return labels
        notes = Notes()
        content = read(labels, notes)
        try:
            require_few(content)
            names, synonyms, negatives = [], [], []
            for name, given in _pairs(content, notes):
                means, is_not = _positive_and_negative(name, given)
                names.append(name)
                synonyms.append(means)
                negatives += is_not
            return cls(tuple(names), tuple(synonyms), tuple(negatives), notes.warnings)
        except LabelError as error:
            if notes.file and notes.file not in str(error):
                raise LabelError(f"{notes.file}: {error}") from error
            raise


def _pairs(content: Content, notes: Notes) -> Iterator[tuple[str, list[str]]]:
    """Each class with its words."""
    if isinstance(content, Mapping):
        for key, words in content.items():
            name = tidied(key, notes)
            one = isinstance(words, str) or is_prompt(words)
            listed = [words] if one else as_list(() if words is None else words, f"label '{short(name)}'")
            if isinstance(words, Mapping):
                raise LabelError(f"label '{short(name)}' has a dict for its words; give a list of strings")
            yield name, [_word(part, notes) for word in listed or [name] for part in _parts(word)]
        return
    for number, entry in enumerate(content, start=1):
        if is_prompt(entry):
            yield clean(name_of(entry, number), "label"), [parse_prompt(entry)]
            continue
        parts = tidied(entry, notes).split("|")
        if (len(content) == 1 and "," in parts[0]) or ";" in parts[0] or " . " in parts[0]:
            notes.say("what separates labels in a string separates none within a list; write them one by one", parts[0])
        yield tidied(parts[0], notes), [_word(part, notes) for part in parts]


def _parts(word: object) -> Sequence[object]:
    """The words for one class in a string with "|", as in a list."""
    return word.split("|") if isinstance(word, str) and not isinstance(word, Prompt) else [word]


def _word(word: object, notes: Notes) -> str:
    return parse_prompt(word) if is_prompt(word) else scored(tidied(word, notes), notes)


def _positive_and_negative(name: str, words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    if name.startswith(NOT):
        raise LabelError(f"label '{short(name)}' says only what it is not; put it after a class: \"dog | {name}\"")
    means = tuple(word for word in words if not word.startswith(NOT)) or (name,)
    is_not = [clean(word.removeprefix(NOT), "negative") for word in words if word.startswith(NOT)]
    meant = {word.casefold() for word in means}
    for word in is_not:
        if word.casefold() in meant:
            raise LabelError(f"label '{short(name)}' is '{short(word)}' and not '{short(word)}'; remove one of them")
    return means, is_not
