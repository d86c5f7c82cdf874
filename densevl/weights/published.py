"""Published models: architectures, tags, and the activations and pixels of one tag or of a whole architecture.

They come from open_clip's table and from `large`.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from densevl.weights.facts import CLIP_MEAN, CLIP_STD, GELU, QUICK, TANH, Fact, Facts
from densevl.weights.large import ARCHITECTURES, PUBLISHED

PIXELS: Mapping[str, Any] = {
    "mean": CLIP_MEAN,
    "std": CLIP_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
"""The table's entries about pixels, and their defaults."""
LISTED = 4  # tags in a message


def architectures() -> list[str]:
    """Their names."""
    from open_clip import list_models

    return [*list_models(), *ARCHITECTURES]


def config_of(arch: str) -> dict[str, Any] | None:
    """open_clip's model_cfg of an architecture; None for an unknown one."""
    from open_clip.factory import get_model_config

    found: dict[str, Any] | None = (
        copy.deepcopy(ARCHITECTURES[arch]) if arch in ARCHITECTURES else get_model_config(arch)
    )
    return found


def pairs() -> list[tuple[str, str]]:
    """Architecture and tag of all published weights."""
    from open_clip.pretrained import list_pretrained

    return [*list_pretrained(), *PUBLISHED]


def tags_of(arch: str) -> list[str]:
    """The tags of an architecture."""
    return [tag for name, tag in pairs() if name == arch]


def told(arch: str, tag: str) -> Mapping[str, Any]:
    """The table's entry of published weights in open_clip's form: hf_hub, mean, ...; empty for unknown ones."""
    from open_clip.pretrained import get_pretrained_cfg

    found: Mapping[str, Any] = get_pretrained_cfg(arch, tag)
    return {"hf_hub": PUBLISHED[arch, tag]} if (arch, tag) in PUBLISHED else found


def of_tag(arch: str, tag: str, config: Mapping[str, Any]) -> dict[str, Fact]:
    """The facts of published weights.

    Args:
        config: open_clip's model_cfg of the architecture, which may set the activation.
    """
    return {name: Fact(value, f"open_clip's table, {arch}/{tag}") for name, value in _values(arch, tag, config).items()}


def of_architecture(arch: str, config: Mapping[str, Any]) -> tuple[dict[str, Fact], dict[str, str]]:
    """The facts of weights with only a known architecture, and warnings about guesses among them, by name.

    Facts on which all published weights of the architecture agree are taken. Otherwise the most common pixel settings
    are, and the plain config's activation.
    """
    tags = tags_of(arch)
    plain = QUICK if config.get("quick_gelu") else GELU
    usual = {"image_activation": plain, "text_activation": plain, **PIXELS}
    by_value: dict[str, dict[Any, list[str]]] = defaultdict(lambda: defaultdict(list))
    for tag in tags:
        for name, value in _values(arch, tag, config).items():
            by_value[name][value].append(tag)
    facts: dict[str, Fact] = {}
    warnings = {}
    for name, value in usual.items():
        values = by_value.get(name, {})
        if len(values) == 1:
            facts[name] = Fact(next(iter(values)), f"all published weights of {arch}")
        else:
            facts[name] = Fact(value, f"open_clip's config of {arch}", guessed=len(values) > 1)
    for what, name in (("activation", "image_activation"), ("mean and deviation", "mean"), ("resizing", "resize_mode")):
        if facts[name].guessed:
            warnings[name] = _warning(arch, what, facts[name].value, by_value[name])
    return facts, warnings


def unknown(what: str, usual: Facts) -> tuple[dict[str, Fact], dict[str, str]]:
    """The facts of unknown weights, and warnings that they are guesses, by name.

    Args:
        what: name of the file. usual: facts of their form, of which the guesses are taken.
    """
    guess = {"image_activation": GELU, "text_activation": GELU, **PIXELS}
    facts = {name: Fact(value, "a guess", guessed=True) for name, value in guess.items()}
    facts |= {name: fact for name, fact in usual.items() if fact.guessed}
    ways = {
        "activation": ("image_activation", "--activation quick_gelu"),
        "pixel statistics": ("mean", "--mean R,G,B --std R,G,B"),
    }
    return facts, {
        name: f"weights file {what} does not say its {part}: taken {_shown(facts[name].value)}; if its model is "
        "another, name it beside the file, such as ViT-B-32/openai, or write them down once: densevl models convert "
        f"FILE OUT {option}"
        for part, (name, option) in ways.items()
    }


def _values(arch: str, tag: str, config: Mapping[str, Any]) -> dict[str, Any]:
    entry = told(arch, tag)
    kind = QUICK if entry.get("quick_gelu") or config.get("quick_gelu") else GELU
    pixels = {name: entry.get(name, usual) for name, usual in PIXELS.items()}
    pixels = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in pixels.items()}
    return {"image_activation": kind, "text_activation": kind, **pixels}


def _warning(arch: str, what: str, taken: Any, by_value: Mapping[Any, list[str]]) -> str:
    def listed(tags: list[str]) -> str:
        return ", ".join(tags[:LISTED]) + ", ..." * (len(tags) > LISTED)

    others = "; ".join(f"{_shown(value)} for {listed(tags)}" for value, tags in by_value.items() if value != taken)
    like = next((tags[0] for value, tags in by_value.items() if value != taken), "")
    return (
        f"the weights file does not say its {what}, and published weights of {arch} differ: taken {_shown(taken)}; it "
        f"is {others}. If it comes from one of these, name it beside the file: {arch}/{like}; "
        "or write it down once with densevl models convert"
    )


def _shown(value: Any) -> str:
    names = {QUICK: "QuickGELU", GELU: "GELU", TANH: "GELU with tanh", CLIP_MEAN: "CLIP's own"}
    if value in names:
        return names[value]
    return str(value[0]) if isinstance(value, tuple) and len(set(value)) == 1 else str(value)
