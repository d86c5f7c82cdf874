"""`Descriptors`: texts about the look of classes, from a file (in the style of CuPL, DCLIP and ITACLIP)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from densevl.errors import OptionError
from densevl.vocabulary.parsing import as_list, clean, short
from densevl.vocabulary.reading import read_data
from densevl.vocabulary.templates import fill

MAX_LABELS = 100_000
# Beginnings of features after "which", and after "which is"; others follow "which has".
_SAYS = ("is", "are", "was", "has", "have", "can", "may", "will", "often", "usually", "looks", "contains", "consists")
_IS = ("a", "an", "the", "made", "used", "found", "worn", "seen", "shaped", "covered", "painted")


@dataclass(frozen=True)
class Descriptors:
    """Texts by label, and their weight against the templates.

    A text with "{}" is a template. One that ends like a sentence, or names the label, is used as it is (CuPL). Any
    other is a feature, "four legs", and becomes "cat, which has four legs" (DCLIP).

    Attributes:
        texts: by label in lower case, its texts.
        weight: lambda in t = (1 - lambda) t_templates + lambda t_texts (ITACLIP); 1 leaves the templates out.
        unit: whether t is normalised again, so that labels with and without texts compete evenly; ITACLIP does not.
    """

    texts: Mapping[str, tuple[str, ...]] = field(hash=False)
    weight: float = 1.0
    unit: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.weight <= 1.0:
            raise OptionError(f"descriptor weight {self.weight} is outside 0..1; leave descriptors out for 0")

    @classmethod
    def parse(
        cls,
        spec: Descriptors | str | Path | Mapping[str, str | Sequence[str]],
        *,
        weight: float = 1.0,
        unit: bool = True,
    ) -> Descriptors:
        """Read {label: text or list of texts}, a dict, or a JSON or YAML file of one.

        Raises:
            OptionError: the file is unreadable, it is not such a dict, a text is empty, or the weight is outside 0..1.
        """
        if isinstance(spec, Descriptors):
            return spec
        content = (
            read_data(Path(spec), "descriptors file", error=OptionError) if isinstance(spec, (str, Path)) else spec
        )
        if not isinstance(content, Mapping) or not content:
            raise OptionError(f"descriptors are a {type(content).__name__}; give a dict of label to texts, not empty")
        if len(content) > MAX_LABELS:
            raise OptionError(f"descriptors of {len(content)} labels; the limit is {MAX_LABELS}")
        texts = {}
        for label, given in content.items():
            listed = (
                [given]
                if isinstance(given, str)
                else as_list(given, f"descriptors of '{short(str(label))}'", error=OptionError)
            )
            if not listed or isinstance(given, Mapping):
                raise OptionError(f"descriptors of '{short(str(label))}' are not a list of texts, or an empty one")
            texts[clean(label, "label", error=OptionError).casefold()] = tuple(
                clean(text, "descriptor", error=OptionError) for text in listed
            )
        return cls(texts, weight, unit)

    def sentences(self, query: str, name: str) -> tuple[str, ...]:
        """The prompts of a string: from its own entry, or from that of its class `name`; () if neither has one."""
        return tuple(_sentence(text, query, name) for text in self._of(query, name))

    def covers(self, query: str, name: str) -> bool:
        """Whether there are any."""
        return bool(self._of(query, name))

    def _of(self, query: str, name: str) -> tuple[str, ...]:
        return self.texts.get(query.casefold()) or self.texts.get(name.casefold()) or ()


def _sentence(text: str, query: str, name: str) -> str:
    if "{}" in text:
        return fill(text, query)
    if text[-1] in ".!?" or any(re.search(rf"\b{re.escape(word)}", text, re.IGNORECASE) for word in (query, name)):
        return text
    first = text.casefold().split()[0]
    link = "which" if first in _SAYS else "which is" if first in _IS else "which has"
    return f"{query}, {link} {text}"
