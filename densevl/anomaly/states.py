"""Words for sound and damaged things: state phrases times templates, for each polarity.

The grammar and the counts are WinCLIP's (Jeong et al., CVPR 2023): seven normal and four anomalous states around the
name of the thing, each in all 22 templates; the words are densevl's own. "{}" is a placeholder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch.nn import functional as F

from densevl import digest
from densevl.errors import OptionError, suggest
from densevl.vocabulary.parsing import as_list, clean, short
from densevl.vocabulary.reading import read_data
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
"""The name used when the user gives none; one pair of prototypes then serves everything (AnomalyCLIP)."""


@dataclass(frozen=True)
class States:
    """State phrases for both polarities, and the templates around them.

    Attributes:
        normal, anomalous: state phrases, each with "{}" for the name of the thing.
        templates: sentences, each with "{}" for the state phrase.
        average: "norm_mean", prompts are normalised before their mean, or "raw_mean", only the mean is (WinCLIP).
        directions: two vectors (E,) of the model's joint space, normal and anomalous, which replace the words.

    A repeated phrase counts twice, as in the list of templates that most code shares.
    """

    normal: tuple[str, ...] = NORMAL
    anomalous: tuple[str, ...] = ANOMALOUS
    templates: tuple[str, ...] = TEMPLATES
    average: str = "norm_mean"
    directions: tuple[tuple[float, ...], ...] = ()

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
                    raise OptionError(f"{name} phrase '{short(phrase)}' has no {{}} to fill")
            object.__setattr__(self, name, phrases)
        if self.average not in ("norm_mean", "raw_mean"):
            raise OptionError(f"average is {self.average!r}; it is norm_mean or raw_mean")
        object.__setattr__(self, "directions", _directions(self.directions))

    @classmethod
    def parse(cls, spec: States | str | Path | Mapping[str, Any] | npt.ArrayLike | None) -> States:
        """Read states from a dict or a JSON file of fields of this class; missing fields, and None, take the defaults.

        A float array or tensor (2, E) sets the two `directions`.

        Raises:
            OptionError: the file is unreadable, a key is unknown, or phrases are unusable.
        """
        if spec is None or isinstance(spec, States):
            return spec or cls()
        if hasattr(spec, "shape"):
            return cls(directions=_directions(spec))
        content = read_data(Path(spec), "states file", error=OptionError) if isinstance(spec, (str, Path)) else spec
        if not isinstance(content, Mapping):
            raise OptionError(f"states are a {type(content).__name__}; give a dict with {', '.join(FIELDS)}")
        known = (*FIELDS, "average", "directions")
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

    def require_width(self, width: int) -> None:
        """Raise OptionError if directions are for a joint space of another width."""
        if self.directions and len(self.directions[0]) != width:
            raise OptionError(f"directions of states are {len(self.directions[0])} wide, the model's space is {width}")

    def digest(self) -> str:
        """A short hash of the words, for caches and reports."""
        words = ("\1".join(getattr(self, name)) for name in FIELDS)
        return digest.of_text(*words, self.average, *map(str, self.directions))[:16]

    def prototypes(self, encode: Callable[[Sequence[str]], torch.Tensor], item: str = THING) -> torch.Tensor:
        """The two directions of a thing, normal first.

        Args:
            encode: strings to (T, E), not normalised; one call encodes all prompts.

        Returns:
            (2, E) float32, unit rows.
        """
        if self.directions:
            return F.normalize(torch.tensor(self.directions), dim=-1)
        normal, anomalous = self.expand(item)
        rows = encode([*normal, *anomalous]).float()
        rows = rows if self.average == "raw_mean" else F.normalize(rows, dim=-1)
        return F.normalize(
            torch.stack([part.mean(dim=0) for part in rows.split([len(normal), len(anomalous)])]), dim=-1
        )


def _directions(given: Any) -> tuple[tuple[float, ...], ...]:
    """Two vectors of one width as tuples of numbers, or none."""
    try:
        rows = torch.as_tensor(given, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise OptionError(f"directions of states are {short(str(given))}; give two vectors of numbers") from error
    if rows.numel() == 0:
        return ()
    if rows.ndim != 2 or len(rows) != 2:
        raise OptionError(f"directions of states have the shape {tuple(rows.shape)}: (2, E), normal and anomalous")
    if not bool(rows.isfinite().all() and rows.any(dim=1).all()):
        raise OptionError("a direction of the states holds only zeros, or numbers that are not finite")
    return tuple(map(tuple, rows.tolist()))
