"""The engine: pixels through a tower whose last blocks are rewired by a `Recipe`, to dense features.

Data goes one way: embed, blocks as trained, rewired blocks, read-out. Shape letters: B batch, N tokens (leading ones
first), D width, E joint space, A heads, d head width, h/w patch grid.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from densevl.errors import RecipeError
from densevl.recipes.contributions import contributions
from densevl.recipes.features import DenseFeatures, Hints
from densevl.recipes.feedback import label_feedback
from densevl.recipes.parts import LabelFeedback
from densevl.recipes.recipe import Recipe
from densevl.recipes.regions import region_tokens
from densevl.recipes.rewire import Rewirer
from densevl.recipes.tower import Tower
from densevl.recipes.trunk import Trunk, run_trunk


def encode(tower: Tower, pixels: torch.Tensor, recipe: Recipe, rule: str, hints: Hints) -> DenseFeatures:
    """Encode normalised pixels (B, 3, H, W), sides multiples of the patch, by a recipe.

    Raises:
        RecipeError: the recipe wants blocks the tower has not, or a hint that is missing.
    """
    if hints.compat and recipe.quirks:
        rule = recipe.as_published().position_rule if rule == recipe.position_rule else rule
        recipe = recipe.as_published()
    require(tower, recipe, hints)
    if recipe.readout == "contributions":
        return contributions(tower, pixels, rule)
    return finish(tower, run_trunk(tower, pixels, recipe, rule), recipe, hints)


def require(tower: Tower, recipe: Recipe, hints: Hints) -> None:
    """Refuse a recipe that cannot run here, with the reason."""
    count = recipe.rewired
    if count > tower.depth:
        if not tower.depth:
            raise RecipeError(f"recipe '{recipe.name}' rewires attention, but the tower is {tower.kind}; use 'vanilla'")
        raise RecipeError(
            f"recipe '{recipe.name}' rewires {count} blocks, the tower has {tower.depth}; use another recipe"
        )
    if recipe.reads_proxy and hints.proxy is None:
        model = f", such as load_proxy('{recipe.proxy.model}')" if recipe.proxy else ""
        raise RecipeError(f"recipe '{recipe.name}' borrows the affinity of another model; give proxy=...{model}")
    if any(term.regions for term in recipe.parts) and hints.regions is None:
        raise RecipeError(f"recipe '{recipe.name}' stays within regions; give regions (B, H, W), a segment map")


def finish(tower: Tower, trunk: Trunk, recipe: Recipe, hints: Hints) -> DenseFeatures:
    """The rewired end, on one window's trunk or on a stitched one."""
    bias = None
    if isinstance(recipe.feedback, LabelFeedback) and hints.text is not None:
        first = finish(tower, trunk, replace(recipe, feedback=None), hints)
        recipe, bias = label_feedback(first, recipe, recipe.feedback, hints)
    if recipe.readout == "regions":
        if hints.regions is None:
            raise RecipeError(f"recipe '{recipe.name}' pools over masks; give regions (B, R, H, W)")
        return DenseFeatures(region_tokens(tower, trunk, hints.regions), scoring=recipe.scoring)
    rewirer = Rewirer(tower, trunk, recipe, hints, bias)
    if recipe.is_native:
        return replace(_read(tower, trunk.x, rewirer), scoring=recipe.scoring)
    if recipe.dual_layers:
        return replace(_read(tower, rewirer.dual(), rewirer), scoring=recipe.scoring)
    further, fused = rewirer.further(), recipe.scoring.startswith("layers")
    x_BND = rewirer.chain()
    if not fused and recipe.fuse == "tokens":
        x_BND, further = sum(further, start=x_BND), []
    dense = _read(tower, x_BND, rewirer)
    layers = tuple(_read(tower, y_BND, rewirer).features for y_BND in further)
    if fused:  # each source is compared with text for itself, the last block's own input last
        return replace(dense, layers=layers, affinity=rewirer.mean_map(), scoring=recipe.scoring)
    features = sum(layers, start=dense.features)
    own_cls = rewirer.region_cls()
    if own_cls is not None and recipe.scope is not None:
        features = features + recipe.scope.cls * _read(tower, own_cls, rewirer).features
    return replace(dense, features=features, affinity=rewirer.likeness(), scoring=recipe.scoring)


def _read(tower: Tower, x_BND: torch.Tensor, rewirer: Rewirer) -> DenseFeatures:
    """Tokens after the last block to features. Patches alone leave no CLS."""
    y_BNE = rewirer.joint(tower.read(x_BND))
    cls = None
    if rewirer.prefix == tower.prefix:
        cls = y_BNE[:, 0] if tower.reads_cls else tower.pool(x_BND)
    return DenseFeatures(features=y_BNE[:, rewirer.prefix :].mT.unflatten(2, rewirer.grid), cls=cls)
