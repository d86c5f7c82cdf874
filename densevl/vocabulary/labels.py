"""`LabelSet`: what the user asked for: classes, their synonyms, and what counts as background."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

from densevl.errors import LabelError

NOTHING = -1  # the label of a pixel that belongs to no class
MAX_LENGTH = 300  # characters of one string: several times what a CLIP text tower can read
UNKNOWN = "unknown"
RESERVED = "nothing"  # what results call the pixels without a label
MAX_CLASSES = 32_767  # label maps are int16


@dataclass(frozen=True)
class Background:
    """When a pixel gets no label.

    Attributes:
        words: strings that compete with the classes; a pixel they win is labelled nothing.
        threshold: a pixel whose best probability is under this (0..1) is labelled nothing.
        unknown: let the model's own "none of these" compete, if it has one.
    """

    words: tuple[str, ...] = ()
    threshold: float = 0.0
    unknown: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold < 1.0:
            raise LabelError(f"background threshold {self.threshold} is outside 0..1; it is a probability")

    @classmethod
    def parse(cls, spec: str | float | Sequence[str] | Background | None) -> Background:
        """Read a policy: None or "none"; "unknown"; a probability (0.3 or "0.3"); words as a list or "sky,wall".

        Raises:
            LabelError: a threshold outside 0..1, or words that are not strings.
        """
        if isinstance(spec, Background):
            return spec
        if spec is None or spec == "none":
            return cls()
        if isinstance(spec, Real):
            return cls(threshold=float(spec))
        if isinstance(spec, str):
            if spec == UNKNOWN:
                return cls(unknown=True)
            try:
                return cls(threshold=float(spec))
            except ValueError:
                spec = spec.split(",")
        words = [part for word in _as_list(spec, "background") for part in _clean(word, "background").split("|")]
        return cls(words=tuple(_clean(word, "background") for word in words))

    def __str__(self) -> str:
        parts = [", ".join(self.words)] * bool(self.words) + [UNKNOWN] * self.unknown
        parts += [f"probability under {self.threshold:g}"] * (self.threshold > 0)
        return "; ".join(parts) or "none"


@dataclass(frozen=True)
class LabelSet:
    """Classes in order, each with the strings that mean it.

    Attributes:
        names: display name of each class, unique.
        synonyms: for each class, the strings scored for it; a pixel's class is that of its best string.
    """

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...] = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "synonyms", tuple(tuple(words) for words in self.synonyms))
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
            raise LabelError(f"label '{_short(doubled)}' is given twice; names must differ")
        if RESERVED in self.names:
            raise LabelError(f"label '{RESERVED}' is what pixels without a label are called; choose another word")
        owner: dict[str, str] = {}
        for name, words in zip(self.names, self.synonyms, strict=True):
            for word in words:
                if word.casefold() in owner:
                    raise LabelError(
                        f"label '{_short(word)}' is given twice (in '{_short(owner[word.casefold()])}' and "
                        f"'{_short(name)}'); each string belongs to one class"
                    )
                owner[word.casefold()] = name

    def __len__(self) -> int:
        return len(self.names)

    @property
    def queries(self) -> list[str]:
        """All strings, class by class."""
        return [word for words in self.synonyms for word in words]

    @property
    def query_classes(self) -> list[int]:
        """The class index of each string in `queries`."""
        return [index for index, words in enumerate(self.synonyms) for _ in words]

    @classmethod
    def parse(cls, labels: LabelSet | str | Path | Sequence[str] | Mapping[str, Iterable[str]]) -> LabelSet:
        """Read labels in any form people write them.

        Args:
            labels: a list of strings, "car | truck" meaning two words for one class named "car"; a dict of name to
                words; a string "cat,dog"; or a file: .json with a list or a dict, .txt with a class a line, synonyms
                after commas or "|", lines that start with "#" left out.

        Raises:
            LabelError: empty, doubled, too long, not strings, or an unreadable file.
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
        if isinstance(labels, Mapping):
            pairs = []
            for name, words in labels.items():
                listed = [words] if isinstance(words, str) else _as_list(words, f"label '{name}'")
                pairs.append((name, listed or [name]))
        else:
            texts = [_clean(entry, "label") for entry in _as_list(labels, "labels")]
            pairs = [(text.split("|")[0], text.split("|")) for text in texts]
        return cls(
            names=tuple(_clean(name, "label") for name, _ in pairs),
            synonyms=tuple(tuple(_clean(word, "label") for word in words) for _, words in pairs),
        )


def _as_list(value: object, what: str) -> list[object]:
    if isinstance(value, Iterable):
        return list(value)
    raise LabelError(f"{what} is a {type(value).__name__}; give a list of strings")


def _clean(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise LabelError(f"{what} {text!r} is a {type(text).__name__}; labels are strings")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise LabelError(f"{what} {text!r} holds half a character (a lone surrogate); write it anew")
    tidy = " ".join(text.split())
    if not tidy.strip("| "):
        raise LabelError(f"an empty {what} in the list; remove it (a doubled or trailing comma?)")
    if len(tidy) > MAX_LENGTH and "|" not in tidy:
        raise LabelError(f"{what} '{_short(tidy)}' has {len(tidy)} characters; the limit is {MAX_LENGTH}")
    return tidy


def _lines(text: str) -> list[str]:
    """A class a line; within a line a comma means what "|" does, as in the class files of the papers."""
    lines = (line.strip() for line in text.splitlines())
    return [line.replace(",", "|") for line in lines if line and not line.startswith("#")]


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _read(path: Path) -> list[str] | dict[str, list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix == ".json" else _lines(text)
    except (OSError, ValueError, RecursionError) as error:
        raise LabelError(f"labels file {path} cannot be read: {error}") from error
    if not isinstance(content, (list, dict)):
        raise LabelError(f"labels file {path} holds a {type(content).__name__}; it needs a list of labels or a dict")
    return content
