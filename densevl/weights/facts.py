"""Facts that weights alone do not hold: activations, pixels and tokenizer, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densevl.weights.reading import State

QUICK, GELU, TANH = "quick_gelu", "gelu", "gelu_tanh"
ACTIVATIONS = (QUICK, GELU, TANH)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CALLER = "given by the caller"
"""The source that overrides all others."""
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Fact:
    """A value and its source.

    Attributes:
        value: JSON types. source: in words, "config.json". guessed: whether it has no source and is a guess.
    """

    value: Any
    source: str
    guessed: bool = False

    def told(self) -> list[Any]:
        """Value and source, in the form of results."""
        return [list(self.value) if isinstance(self.value, tuple) else self.value, self.source]


Facts = Mapping[str, Fact]
"""By name: image_activation, text_activation, mean, std, interpolation, resize_mode, tokenizer."""


@dataclass(frozen=True)
class Form:
    """A model as a file or folder holds it, in open_clip's names.

    Attributes:
        name: of the form, "CLIP of transformers".
        state: tensors by open_clip's names.
        config: open_clip's model_cfg if the file or its config holds the sizes, otherwise None.
        trunk: keywords of timm's `create_model` that differ from the model that `config` names.
        text: a text side of transformers: config (dict), pooler, head ("none", "linear", "mlp" or "norm"), and whether
            padding is masked (the default).
        attention: the kind of both towers if it is not CLIP's: "differential".
        head: the layers from patches to words behind the tower, see `backbones.towers.speaking`.
        facts: those that the form implies.
        tower: whether it is the image tower alone.
        guesses: warnings about guessed sizes in `config`.
        decides: whether `config` overrides open_clip's config of the architecture, because the network differs.
        notes: warnings about the file.
    """

    name: str
    state: State
    config: dict[str, Any] | None = None
    trunk: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    attention: str | None = None
    head: dict[str, Any] | None = None
    facts: Facts = field(default_factory=dict)
    tower: bool = False
    guesses: tuple[str, ...] = ()
    decides: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The inputs from which a network was built.

    Attributes:
        config, trunk, text, attention, head: see `Form`. folder: of its files.
        parameters: of the image tower and of the text side. memory: bytes by precision.
    """

    config: dict[str, Any]
    trunk: dict[str, Any] | None
    text: dict[str, Any] | None
    attention: str | None
    head: dict[str, Any] | None
    folder: Path | None
    parameters: tuple[int, int]
    memory: Mapping[str, int]


def said(source: str, **values: Any) -> dict[str, Fact]:
    """Facts from one source."""
    return {name: Fact(value, source) for name, value in values.items()}


def activations(kind: str, source: str) -> dict[str, Fact]:
    """One activation for both towers."""
    return said(source, image_activation=kind, text_activation=kind)
