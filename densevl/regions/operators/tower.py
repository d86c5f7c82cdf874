"""The one place where this room reaches into a backbone for its tower of blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from densevl.errors import ModelError, RecipeError
from densevl.recipes.tower import Tower

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone


def cls_tower(backbone: Backbone, operator: str) -> Tower:
    """The backbone's tower, if its image embedding is read from a CLS token that went through blocks.

    Raises:
        ModelError: it is not; copies of CLS would mean nothing.
    """
    tower = getattr(backbone, "tower", None)
    why = "it is not a CLIP" if tower is None else f"its tower is {tower.kind}"
    if tower is not None and tower.depth and not tower.reads_cls:
        why += ", pooled over all patches"
    try:
        if tower is not None and tower.depth and tower.reads_cls and tower.view(0, (1, 1)) is not None:
            return tower
    except RecipeError:
        why = "its blocks cannot be taken apart"
    raise ModelError(
        f"operator '{operator}' looks with copies of CLS, but model '{backbone.name}' reads no image embedding from "
        f"such a token ({why}); use operator 'pool' or 'crop'"
    )
