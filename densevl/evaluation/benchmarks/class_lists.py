"""Class lists of the benchmarks, and the strings that papers use for them: versioned data.

mIoU changes by points with the strings, so each set of them has a name: "names" are the display names, "sclip@1" those
of SCLIP and later papers, "proxyclip@1" those of ProxyCLIP, Trident and CorrCLIP (ClearCLIP has the same classes). A
change makes a new version and keeps the old one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from densevl.errors import LabelError, suggest
from densevl.vocabulary import LabelSet

FOLDER = Path(__file__).parent / "classes"
DISPLAY = "names"
BACKGROUND = "background"


@dataclass(frozen=True)
class ClassList:
    """The classes of a benchmark in the order of its label ids.

    Attributes:
        name: of the benchmark; source: where the order comes from.
        names: the classes without background.
        background: whether label 0 is background, a class of its own without a string in `names`.
        strings: by variant, the classes whose strings differ from their names.
        words: by variant, the list of `vocabulary.background.WORD_LISTS` that means background.
    """

    name: str
    names: tuple[str, ...]
    background: bool = False
    strings: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    @property
    def all_names(self) -> tuple[str, ...]:
        """Names by class index, background first where there is one."""
        return (BACKGROUND, *self.names) if self.background else self.names

    @property
    def variants(self) -> tuple[str, ...]:
        """The available sets of strings."""
        return (DISPLAY, *self.strings)

    def labels(self, variant: str = DISPLAY) -> LabelSet:
        """The labels for a segmenter: every class but background, in order.

        Raises:
            LabelError: there is no such variant.
        """
        if variant not in self.variants:
            raise LabelError(
                f"'{self.name}' has no strings '{variant}'{suggest(variant, self.variants)}; "
                f"it has {', '.join(self.variants)}"
            )
        changed = self.strings.get(variant, {})
        words = tuple(tuple(changed.get(name, [name])) for name in self.names)
        return LabelSet(self.names, words)


@lru_cache(maxsize=32)
def class_list(name: str) -> ClassList:
    """The shipped class list of a benchmark.

    Raises:
        LabelError: there is none.
    """
    path = FOLDER / f"{name}.json"
    if name not in listed():
        raise LabelError(f"no class list '{name}'{suggest(name, listed())}; there are {', '.join(listed())}")
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return ClassList(
        name,
        tuple(data["names"]),
        data["background"],
        data["strings"],
        data.get("words", {}),
        data["source"],
    )


def listed() -> tuple[str, ...]:
    """Benchmarks with a shipped class list."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
