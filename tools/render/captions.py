"""Sentences about scenes and surfaces, and the list of every phrase they can hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .nouns import Noun, all_nouns, is_plural, listed, with_article
from .textures import Texture, all_textures

SCENE_TEMPLATES = (
    "a photo of {things} {place}",
    "a picture of {things} {place}",
    "an image of {things} {place}",
    "a drawing of {things} {place}",
    "{things} {place}",
    "you see {things} {place}",
    "this shows {things} {place}",
)
BARE_TEMPLATES = (
    "a photo of {surface}",
    "a picture of {surface}",
    "a close-up of {surface}",
    "{surface}",
    "only {surface}",
)
STATE_TEMPLATES = ("a photo of {state}", "a picture of {state}", "a close-up photo of {state}", "{state}")
FLAWLESS = ("flawless", "perfect", "undamaged", "intact")
DEFECTS = ("scratch", "hole", "stain", "crack")
"""Kinds of damage that `surfaces` renders; cracks are for evaluation only."""

SYNONYM_SHARE = 0.25
UNCOUNTABLE = frozenset({"grass", "sand", "water", "snow", "cobblestone", "soil", "fallen leaves", "knitted wool"})


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Choose one of the options."""
    return options[int(rng.integers(len(options)))]


def name_of(noun: Noun, rng: np.random.Generator) -> str:
    """Return the name, or one time in four a synonym where there is one."""
    return pick(rng, noun.synonyms) if noun.synonyms and rng.random() < SYNONYM_SHARE else noun.name


def scene_caption(nouns: Sequence[int], texture: Texture, rng: np.random.Generator) -> str:
    """Say what stands where: "a photo of a dog, an umbrella and another dog on wooden planks"."""
    if not nouns:
        return pick(rng, BARE_TEMPLATES).format(surface=bare(texture))
    things, seen = [], set()
    for index in nouns:
        name = name_of(all_nouns()[index], rng)
        again = f"more {name}" if is_plural(name) else f"another {name}"
        things.append(again if index in seen else with_article(name))
        seen.add(index)
    return pick(rng, SCENE_TEMPLATES).format(things=listed(things), place=pick(rng, texture.places)).strip()


def bare(texture: Texture, state: str = "") -> str:
    """Name a surface: "a brick wall", "grass"; with a state "a flawless brick wall", "flawless grass"."""
    phrase = f"{state} {texture.surface}".strip()
    return phrase if texture.surface in UNCOUNTABLE else with_article(phrase)


def surface_caption(texture: Texture, defect: str | None, rng: np.random.Generator) -> str:
    """Say whether a surface is whole: "a photo of a flawless brick wall", "a brick wall with a hole"."""
    if defect is None:
        state = bare(texture, pick(rng, FLAWLESS))
    else:
        state = pick(rng, (f"{bare(texture)} with {with_article(defect)}", bare(texture, "damaged")))
    return pick(rng, STATE_TEMPLATES).format(state=state)


def all_phrases() -> tuple[str, ...]:
    """Return every name, synonym, place, surface, state and bare template: their words are all that captions hold."""
    phrases = [name for noun in all_nouns() for name in (with_article(noun.name), *noun.synonyms)]
    phrases += [p for t in all_textures() for p in (t.name, *t.places, bare(t))]
    phrases += [t.format(things="an", place="another more and,") for t in SCENE_TEMPLATES]
    phrases += [t.format(surface="an", state="a") for t in BARE_TEMPLATES + STATE_TEMPLATES]
    return tuple(phrases + list(FLAWLESS) + [f"damaged with {with_article(d)}" for d in DEFECTS])
