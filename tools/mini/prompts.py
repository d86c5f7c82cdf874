"""The words of training: which nouns, which templates, and the prompt bank that is drawn again every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from open_clip import OPENAI_IMAGENET_TEMPLATES

from tools.render.captions import BARE_TEMPLATES, FLAWLESS, SCENE_TEMPLATES
from tools.render.captions import STATE_TEMPLATES as CAPTION_STATES
from tools.render.nouns import BENCHMARK_NOUNS, all_nouns, with_article
from tools.render.textures import all_textures

# {} is the name, {a} the name with its article.
NOUN_TEMPLATES = (
    "{}",
    "{a}",
    "a photo of {a}",
    "a picture of {a}",
    "an image of {a}",
    "a drawing of {a}",
    "a flat drawing of {a}",
    "an icon of {a}",
    "a small {}",
    "a large {}",
    "one of the {} pictures",
    "there is {a} in the scene",
    "a close-up of {a}",
)
TEXTURE_TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "{} background",
    "background of {}",
    "{} texture",
    "a surface of {}",
    "the {} in the scene",
)
NORMAL_STATES = (
    "flawless {}",
    "perfect {}",
    "clean {}",
    "{} without defect",
    "{} without damage",
    "undamaged {}",
    "{}",
)
DAMAGED_STATES = ("damaged {}", "{} with a defect", "{} with damage", "defective {}", "{} with a flaw", "broken {}")
STATE_TEMPLATES = (
    "{}",
    "a photo of a {}",
    "a picture of a {}",
    "a photo of the {}",
    "a close-up of a {}",
    "an image of the {}",
)
THINGS = ("surface", "object", "material")
DEFECTS = ("scratch", "hole", "stain")
FOREIGN = 0.25  # share of prompts that take one of open_clip's 80 ImageNet templates
SYNONYMS = 0.25


@dataclass(frozen=True)
class Bank:
    """The classes of training: nouns first, then the textures.

    Attributes:
        nouns: how many nouns of nouns.json are trained; the first 20 are the benchmark's.
    """

    nouns: int = 40

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all classes: (nouns + textures)."""
        return tuple(n.name for n in all_nouns()[: self.nouns]) + tuple(t.name for t in all_textures())

    def __len__(self) -> int:
        return len(self.names)

    def draw(self, rng: np.random.Generator) -> list[str]:
        """One random prompt per class, in the order of `names`."""
        nouns = [self._noun(index, rng) for index in range(self.nouns)]
        return nouns + [_prompt(t.name, TEXTURE_TEMPLATES, rng) for t in all_textures()]

    def _noun(self, index: int, rng: np.random.Generator) -> str:
        noun = all_nouns()[index]
        name = _pick(noun.synonyms, rng) if noun.synonyms and rng.random() < SYNONYMS else noun.name
        return _prompt(name, NOUN_TEMPLATES, rng)

    def texts(self) -> list[str]:
        """Return every string whose tokens get their own rows in the token table."""
        texts = [name for noun in all_nouns()[: self.nouns] for name in (noun.name, *noun.synonyms)]
        for texture in all_textures():
            texts += [texture.name, texture.surface, *texture.places]
        texts += [*THINGS, *DEFECTS, *FLAWLESS, "another more and , a an damaged with"]
        texts += [t.format(things="a", place="a") for t in SCENE_TEMPLATES]
        texts += [t.format(surface="a", state="a") for t in (*BARE_TEMPLATES, *CAPTION_STATES)]
        for template in (*NOUN_TEMPLATES, *TEXTURE_TEMPLATES, *NORMAL_STATES, *DAMAGED_STATES, *STATE_TEMPLATES):
            texts.append(_fill(template, "surface"))
        return texts + [template("surface") for template in OPENAI_IMAGENET_TEMPLATES]


def states(surface: str, rng: np.random.Generator) -> tuple[str, str]:
    """Two random prompts for a bare surface: one that calls it sound, one that calls it damaged."""
    thing = surface if rng.random() < 0.6 else _pick(THINGS, rng)
    template = _pick(STATE_TEMPLATES, rng)
    return tuple(template.replace("{}", _fill(_pick(s, rng), thing)) for s in (NORMAL_STATES, DAMAGED_STATES))


def benchmark_names() -> tuple[str, ...]:
    """The 20 classes of the rendered benchmark."""
    return tuple(noun.name for noun in all_nouns()[:BENCHMARK_NOUNS])


def _prompt(name: str, templates: Sequence[str], rng: np.random.Generator) -> str:
    if rng.random() < FOREIGN:
        return OPENAI_IMAGENET_TEMPLATES[int(rng.integers(len(OPENAI_IMAGENET_TEMPLATES)))](name)
    return _fill(_pick(templates, rng), name)


def _fill(template: str, name: str) -> str:
    return template.replace("{a}", with_article(name)).replace("{}", name)


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
