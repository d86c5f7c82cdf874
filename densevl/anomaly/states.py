"""What sound and damaged things are called: state phrases times templates, for each polarity.

The grammar and the counts are WinCLIP's (Jeong et al., CVPR 2023): seven normal and four anomalous states around the
name of the thing, each in every one of 22 templates; the words are our own. "{}" stands for what is put in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from densevl import digest
from densevl.errors import OptionError, suggest
from densevl.vocabulary.parsing import as_list, clean, read, short
from densevl.vocabulary.templates import fill

NORMAL = (
    "{}",
    "flawless {}",
    "perfect {}",
    "undamaged {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ANOMALOUS = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
# Framing, light, degradation, size and purpose, each with both articles.
TEMPLATES = tuple(
    pattern.replace("*", article)
    for pattern in (
        "a photo of * {}",
        "a close-up photo of * {}",
        "a cropped photo of * {}",
        "a bright photo of * {}",
        "a dark photo of * {}",
        "a blurry photo of * {}",
        "a jpeg photo with artifacts, of * {}",
        "a photo of * small {}",
        "a photo of * large {}",
        "a photo of * {} taken for visual inspection",
        "a photo of * {} to be checked for anomalies",
    )
    for article in ("a", "the")
)
FIELDS = ("normal", "anomalous", "templates")
THING = "object"
"""Named when the user names nothing; one pair of prototypes then serves everything (AnomalyCLIP)."""


@dataclass(frozen=True)
class States:
    """The phrases of one polarity times the templates, and of the other.

    Attributes:
        normal, anomalous: state phrases, each with "{}" for the name of the thing.
        templates: sentences, each with "{}" for the state phrase.
        average: "norm_mean", prompts normalised before their mean, or "raw_mean", only the mean is (WinCLIP's code).
    """

    normal: tuple[str, ...] = NORMAL
    anomalous: tuple[str, ...] = ANOMALOUS
    templates: tuple[str, ...] = TEMPLATES
    average: str = "norm_mean"

    def __post_init__(self) -> None:
        for name in FIELDS:
            phrases = tuple(
                clean(text, f"{name} phrase", error=OptionError)
                for text in as_list(getattr(self, name), name, error=OptionError)
            )
            if not phrases:
                raise OptionError(f"states have no {name} phrases; give at least one")
            for phrase in phrases:
                if "{}" not in phrase:
                    raise OptionError(f"{name} phrase '{short(phrase)}' has no {{}} for what is put in")
            doubled = next((phrase for phrase in phrases if phrases.count(phrase) > 1), None)
            if doubled:
                raise OptionError(f"{name} phrase '{short(doubled)}' stands twice; it would weigh double, remove one")
            object.__setattr__(self, name, phrases)
        if self.average not in ("norm_mean", "raw_mean"):
            raise OptionError(f"average is {self.average!r}; it is norm_mean or raw_mean")

    @classmethod
    def parse(cls, spec: States | str | Path | Mapping[str, Any] | None) -> States:
        """Read states: None for ours, a dict or a JSON file with any of "normal", "anomalous", "templates", "average".

        What the dict leaves out is ours.

        Raises:
            OptionError: an unreadable file, an unknown key, or unusable phrases.
        """
        if spec is None or isinstance(spec, States):
            return spec or cls()
        content = read(Path(spec), "states file", error=OptionError) if isinstance(spec, (str, Path)) else spec
        if not isinstance(content, Mapping):
            raise OptionError(f"states are a {type(content).__name__}; give a dict with {', '.join(FIELDS)}")
        known = (*FIELDS, "average")
        for key in content:
            if key not in known:
                raise OptionError(f"states have no '{key}'{suggest(str(key), known)}; they have {', '.join(known)}")
        lists = {key: value for key, value in content.items() if key in FIELDS}
        for key, value in lists.items():
            if isinstance(value, str):
                raise OptionError(f"{key} phrases are one string; give a list")
        return cls(
            **{**content, **{key: tuple(as_list(value, key, error=OptionError)) for key, value in lists.items()}}
        )

    def expand(self, item: str = THING) -> tuple[list[str], list[str]]:
        """All prompts of the thing, normal and anomalous: states times templates each, in that order."""
        name = clean(item, "item", error=OptionError)
        sets = (self.normal, self.anomalous)
        normal, anomalous = (
            [fill(template, fill(state, name)) for state in states for template in self.templates] for states in sets
        )
        return normal, anomalous

    def digest(self) -> str:
        """A short hash of the words, for caches and reports."""
        return digest.of_text(*("\1".join(getattr(self, name)) for name in FIELDS), self.average)[:16]

    def prototypes(self, encode: Callable[[Sequence[str]], torch.Tensor], item: str = THING) -> torch.Tensor:
        """The two directions of a thing, normal first.

        Args:
            encode: strings to (T, E), not normalised; one call encodes all prompts.

        Returns:
            (2, E) float32, unit rows.
        """
        normal, anomalous = self.expand(item)
        rows = encode([*normal, *anomalous]).float()
        rows = rows if self.average == "raw_mean" else F.normalize(rows, dim=-1)
        return F.normalize(
            torch.stack([part.mean(dim=0) for part in rows.split([len(normal), len(anomalous)])]), dim=-1
        )
