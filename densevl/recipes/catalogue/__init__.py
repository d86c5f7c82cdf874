"""Every method densevl knows, one entry each: the paper, its published figures, and its parts.

To add a method, add an entry (and a parity row in the tests). Files: `last_block`, CLIP's last block by its own
projections; `layers`, outputs and maps of other blocks too; `borrowed`, another model's affinity or regions.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from importlib import import_module

from densevl.errors import RecipeError, suggest
from densevl.recipes.catalogue import borrowed, last_block, layers
from densevl.recipes.parts.readout import Layer
from densevl.recipes.recipe import Recipe

_BY_NAME = {entry.name: entry for entry in (*last_block.ENTRIES, *layers.ENTRIES, *borrowed.ENTRIES)}


def names() -> list[str]:
    """Names of all recipes, in catalogue order."""
    return list(_BY_NAME)


def get(recipe: str | Recipe, *, benchmark: str | None = None) -> Recipe:
    """Return a recipe.

    Args:
        recipe: a name ("CLIP Surgery" finds clip_surgery); "package.module:NAME", a `Recipe` of your own, whose module
            is imported, including from the working folder; or a `Recipe`, which is returned unchanged.
        benchmark: take the paper's settings for this benchmark, such as "voc21"; see `Recipe.on`.

    Raises:
        RecipeError: there is no such recipe, or no settings for the benchmark.
    """
    if not isinstance(recipe, (str, Recipe)):
        raise RecipeError(f"recipe is a {type(recipe).__name__}; give a name or a Recipe")
    found = recipe if isinstance(recipe, Recipe) else _named(recipe)
    return found if benchmark is None else found.on(benchmark)


def _named(name: str) -> Recipe:
    if ":" in name:
        return _imported(*name.split(":", 1))
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    if (layer := re.fullmatch(r"layer_([1-9]|1[0-2])", key)) and key not in _BY_NAME:
        return replace(_BY_NAME["layer_9"], name=key, readout=Layer(int(layer[1])))
    if re.fullmatch(r"layer_\d+", key) and key not in _BY_NAME:
        raise RecipeError(f"no recipe '{name}'; known of this kind: layer_1 to layer_12")
    if key not in _BY_NAME:
        raise RecipeError(f"no recipe '{name}'{suggest(key, _BY_NAME)}; known: {', '.join(_BY_NAME)}")
    return _BY_NAME[key]


def _imported(module: str, name: str) -> Recipe:
    here = os.getcwd()
    sys.path.append(here)  # the command is not a script in this folder, so Python would not look here
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # a user's module can raise anything
        raise RecipeError(f"recipe '{module}:{name}' cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    if not isinstance(found, Recipe):
        raise RecipeError(f"'{module}:{name}' is a {type(found).__name__}, not a Recipe")
    return found
