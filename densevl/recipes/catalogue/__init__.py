"""Every method densevl knows, one entry each: the paper, its published figures, and the few fields that make it.

Adding a method is adding an entry (and a parity row in the tests). Rooms: `last_block`, CLIP's last block by its own
projections; `layers`, other blocks' outputs and maps too; `borrowed`, another model's affinity or regions.
"""

from __future__ import annotations

from densevl.errors import RecipeError, suggest
from densevl.recipes.catalogue import borrowed, last_block, layers
from densevl.recipes.recipe import Recipe

_BY_NAME = {entry.name: entry for entry in (*last_block.ENTRIES, *layers.ENTRIES, *borrowed.ENTRIES)}


def names() -> list[str]:
    """Names of all recipes, in catalogue order."""
    return list(_BY_NAME)


def get(recipe: str | Recipe) -> Recipe:
    """Return the recipe of that name ("CLIP Surgery" finds clip_surgery); a `Recipe` is returned as it is.

    Raises:
        RecipeError: no such recipe.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str):
        raise RecipeError(f"recipe is a {type(recipe).__name__}; give a name or a Recipe")
    key = recipe.strip().lower().replace("-", "_").replace(" ", "_")
    if key not in _BY_NAME:
        raise RecipeError(f"no recipe '{recipe}'{suggest(key, _BY_NAME)}; known: {', '.join(_BY_NAME)}")
    return _BY_NAME[key]
