"""Prompt templates: the sentences into which a label is put before encoding.

A template holds "{}" for the label; it is filled by plain replacement, so labels may hold braces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from runpy import run_path

from densevl.errors import OptionError, suggest
from densevl.shipped import open_clip_file
from densevl.vocabulary.learned_templates import ENDING, NAMED, LearnedTemplate, load
from densevl.vocabulary.parsing import short
from densevl.vocabulary.template_sets import SETS

_PICTURE = r"(?:\w+ ){0,2}(?:photo(?:graph)?|picture|image|rendering) of\b"
_PROMPT = re.compile(rf"(?:(?:this|there|it) is |it's |itap of )?(?:(?:a|an|the|one) )?{_PICTURE}", re.IGNORECASE)
_MARK = "\0"  # stands for the label while open_clip's own templates (functions) are turned into strings
_FROM_OPEN_CLIP = ("openai", "simple")
NAMES = (*_FROM_OPEN_CLIP, *SETS)


def templates(spec: str | Sequence[str]) -> tuple[str, ...]:
    """Return templates by name or as given.

    Args:
        spec: "openai" (CLIP's 80 for ImageNet), "simple" (its 7 best), "name" (the bare label), "photo" (one), a set
            of `template_sets` ("broad", "short", "dense", "scene", "plural", "drawing", "satellite", "street",
            "medical"), several joined by "+" ("openai+scene": MaskCLIP's 85 in densevl's words), one template such as
            "a sketch of a {}", or a list of templates. A file "pets.safetensors" is a saved few-shot head "prompt",
            whose learned templates are taken.

    Raises:
        OptionError: a name is unknown, a list is empty, or a template has no "{}".
        WeightsError: a file is unusable.
    """
    if isinstance(spec, LearnedTemplate):
        return (spec,)
    if isinstance(spec, str):
        if spec.endswith(ENDING):
            return load(spec)
        if "{}" in spec:
            _require_whole(spec)
            return (spec,)
        return tuple(template for name in spec.split("+") for template in _by_name(name.strip()))
    if not spec:
        raise OptionError("an empty list of templates; use 'name' for the bare label")
    for template in spec:
        _require_whole(template)
        if "{}" not in template:
            raise OptionError(f"template '{template}' has no {{}} for the label")
    return tuple(spec)


def fill(template: str, label: str) -> str:
    """Put a label into a template by plain replacement; braces in the label are kept.

    Raises:
        OptionError: the template is learned, so it is not text.
    """
    if isinstance(template, LearnedTemplate):
        raise OptionError("learned templates are vectors and give no sentence; take templates of words here")
    return template.replace("{}", label)


def prompted(words: Sequence[str], templates: Sequence[str]) -> str:
    """A warning if words are sentences already and are put into templates again; "" for none."""
    if tuple(templates) == ("{}",):
        return ""
    twice = next((word for word in words if _PROMPT.match(word) or "{}" in word), None)
    if twice is None:
        return ""
    return f"'{short(twice)}' is put into templates once more: give the bare word, or templates='name' for no others"


def _require_whole(template: str) -> None:
    """Refuse the name of a learned template from a file of results, which does not hold its vectors."""
    if not isinstance(template, LearnedTemplate) and NAMED.fullmatch(template):
        raise OptionError(f"'{template}' only names a learned template; give the few-shot head that holds it")


def _by_name(name: str) -> tuple[str, ...]:
    if name in SETS:
        return SETS[name]
    if name not in _FROM_OPEN_CLIP:
        raise OptionError(f"no templates '{name}'{suggest(name, NAMES)}; name {', '.join(NAMES)} or hold a {{}}")
    lists = run_path(str(open_clip_file("zero_shot_metadata.py")))  # run alone: importing the package takes seconds
    return tuple(function(_MARK).replace(_MARK, "{}") for function in lists[f"{name.upper()}_IMAGENET_TEMPLATES"])
