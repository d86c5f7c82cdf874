"""`LabelSet`: what the user asked for: classes, the strings that mean them, and strings that do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densevl.errors import LabelError
from densevl.vocabulary.parsing import as_list, clean, read, short
from densevl.vocabulary.prompts import Prompt, is_prompt, name_of
from densevl.vocabulary.prompts import parse as parse_prompt

RESERVED = "nothing"  # what results call the pixels without a label
MAX_CLASSES = 32_767  # label maps are int16
NOT = "not:"  # before a string that a class is not


@dataclass(frozen=True)
class LabelSet:
    """Classes in order, each with the strings that mean it.

    Attributes:
        names: display name of each class, unique.
        synonyms: for each class, the strings scored for it; a pixel's class is that of its best string. They may be
            narrower words than the name, {"animal": ["cat", "dog"]}: a hierarchy, see `TextOptions.parents`. Some may
            be a `Prompt`, an image or a vector in the place of a word.
        negatives: strings that look like a class and are none; they compete, and a pixel they win is labelled nothing.
        warnings: what was guessed while the labels were read, a sentence each. Two sets that differ only in this are
            equal.
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
        if len(self.names) > MAX_CLASSES:
            raise LabelError(f"{len(self.names)} labels; a label map holds at most {MAX_CLASSES}")
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
        # A negative that is another class's string competes already.
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

    @classmethod
    def parse(cls, labels: LabelSet | str | Path | Sequence[Any] | Mapping[str, Any]) -> LabelSet:
        """Read labels in any form people write them.

        Args:
            labels: a list of strings, "car | truck" meaning two words for one class named "car", "dog | not: toy dog"
                a negative; a dict of name to words; a string "cat,dog"; or a file: .json with a list or a dict, .txt
                with a class a line, synonyms after commas or "|", lines that start with "#" left out.
                In a list or a dict an image stands for a class as a word does: a `pathlib.Path`, a PIL image, or uint8
                RGB (H, W, 3); so does a float vector (D,) of the model's joint space. A class may have several, and
                words too: {"mug": [Path("mug.jpg"), "cup"]}.

        Raises:
            ImageError: an image that cannot be read.
            LabelError: empty, doubled, too long, not strings, a class that is not itself, or an unreadable file.
        """
        if isinstance(labels, LabelSet):
            return labels
        if isinstance(labels, Path):
            return cls.parse(_read(labels))
        if isinstance(labels, str):
            if not labels.strip():
                return cls.parse([])
            is_file = labels.endswith((".txt", ".json")) or labels.startswith("@")
            return cls.parse(_read(Path(labels.removeprefix("@"))) if is_file else labels.split(","))
        pairs: list[tuple[str, Sequence[object]]] = []
        if isinstance(labels, (set, frozenset)):
            raise LabelError("labels are a set, which has no order, and classes are numbered; give a list")
        if isinstance(labels, Mapping):
            for name, words in labels.items():
                one = isinstance(words, str) or is_prompt(words)
                listed = [words] if one else as_list(words, f"label '{name}'")
                pairs.append((clean(name, "label"), listed or [name]))
        else:
            for number, entry in enumerate(as_list(labels, "labels"), start=1):
                if is_prompt(entry):
                    pairs.append((clean(name_of(entry, number), "label"), [entry]))
                    continue
                parts = clean(entry, "label").split("|")
                pairs.append((clean(parts[0], "label"), parts))
        names, synonyms, negatives = [], [], []
        for name, given in pairs:
            means, is_not = _positive_and_negative(
                name, [parse_prompt(word) if is_prompt(word) else clean(word, "label") for word in given]
            )
            names.append(name)
            synonyms.append(means)
            negatives += is_not
        return cls(tuple(names), tuple(synonyms), tuple(negatives))


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


def _lines(text: str) -> list[str]:
    """A class a line; within a line a comma means what "|" does, as in the class files of the papers."""
    lines = (line.strip() for line in text.splitlines())
    return [line.replace(",", "|") for line in lines if line and not line.startswith("#")]


def _read(path: Path) -> list[str] | dict[str, list[str]]:
    content = read(path, "labels file", _lines)
    if not isinstance(content, (list, dict)):
        raise LabelError(f"labels file {path} holds a {type(content).__name__}; it needs a list of labels or a dict")
    return content
