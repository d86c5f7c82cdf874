"""Regions pooled from dense features: the mean over a mask (`pool`) or over a box (`roi`).

`pool` is the mean of the upsampled unit features over the pixels of the mask. It is computed without upsampling: the
decoding plan maps the mask to the tokens. Masks smaller than a patch are kept in full. FC-CLIP's mask pooling instead
shrinks and thresholds the mask, and most masks of 6 pixels vanish.
Shape letters: R regions, Y/X tokens of all windows, E joint space, T texts.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densevl.backbones.base import Backbone
from densevl.errors import RecipeError
from densevl.inference.sliding import window_scores
from densevl.inference.windows import WindowGrid
from densevl.proposals.base import Proposals
from densevl.recipes import Hints, Recipe
from densevl.regions.operators.pull import pull
from densevl.regions.operators.queries import whole_image

MASKS_AT_ONCE = 256  # token weights of this many are held together


def has_features(recipe: Recipe | None) -> bool:
    """Whether features have a meaning without words: not if there are no recipes, nor if a recipe runs two passes."""
    return recipe is not None and recipe.readout.cosine and "text" not in recipe.reads


@torch.no_grad()
def unit_features(
    backbone: Backbone,
    pixels: torch.Tensor,
    windows: WindowGrid | None = None,
    recipe: str | Recipe | None = None,
    hints: Hints | None = None,
    proxy_scope: str = "image",
) -> tuple[torch.Tensor, WindowGrid]:
    """Unit features of every token of every window, (Y, X, E) float32, and the grid they lie on.

    They are the scores of the axes of the joint space, because a cosine is linear in the text.

    Raises:
        RecipeError: the scores of the model or recipe depend on the words, so there are no features to keep.
    """
    chosen = backbone.resolve(recipe)
    if not has_features(chosen):
        subject = f"model '{backbone.name}'" if chosen is None else f"recipe '{chosen.name}'"
        raise RecipeError(
            f"{subject} scores words, and has no features of its own for regions; "
            "use order='classify_then_pool', which averages its scores over masks"
        )
    windows = windows or whole_image(pixels, backbone.patch_size)
    axes = torch.eye(backbone.embed_dim, device=backbone.device)
    scores, grid = window_scores(backbone, pixels, axes, windows, recipe=chosen, hints=hints, proxy_scope=proxy_scope)
    return scores[0], grid


def pool(
    backbone: Backbone,
    pixels: torch.Tensor,
    masks: Proposals,
    *,
    windows: WindowGrid | None = None,
    recipe: str | Recipe | None = None,
    power: float = 1.0,
    hints: Hints | None = None,
    proxy_scope: str = "image",
) -> torch.Tensor:
    """Embed regions by the mean unit feature over their pixels.

    Args:
        pixels: (1, 3, H, W) normalised; masks: R masks of that photo, at any size.
        windows: the tower's windows; None takes the whole image at once. recipe: None takes the model's default.
        power: exponent of the tokens' weights; above 1 favours the inside of a mask over its border.
        hints: further inputs of the recipe. proxy_scope: as `window_scores` takes it.

    Returns:
        (R, E) float32 unit rows; zeros for an empty mask.

    Raises:
        RecipeError: there are no features to pool; see `unit_features`.
    """
    features_YXE, grid = unit_features(backbone, pixels, windows, recipe, hints, proxy_scope)
    return F.normalize(token_means(features_YXE, grid, masks, power), dim=-1)


def token_means(tokens_YXC: torch.Tensor, grid: WindowGrid, masks: Proposals, power: float = 1.0) -> torch.Tensor:
    """The mean over each mask of what upsampling tokens (Y, X, C) would give: (R, C); zeros for an empty mask."""
    plan = grid.plan(*masks.size)
    means = []
    for start in range(0, len(masks), MASKS_AT_ONCE):
        few = masks.select(list(range(start, min(start + MASKS_AT_ONCE, len(masks)))))
        weights_RYX = pull(few, plan.rows.matrix, plan.cols.matrix) ** power
        weights_RYX /= weights_RYX.sum(dim=(1, 2), keepdim=True).clamp(min=1e-30)
        means.append(torch.einsum("ryx,yxc->rc", weights_RYX.to(tokens_YXC), tokens_YXC))
    return torch.cat(means) if means else tokens_YXC.new_zeros(0, tokens_YXC.shape[-1])


def roi(
    backbone: Backbone,
    pixels: torch.Tensor,
    masks: Proposals,
    *,
    windows: WindowGrid | None = None,
    recipe: str | Recipe | None = None,
    hints: Hints | None = None,
    proxy_scope: str = "image",
) -> torch.Tensor:
    """Embed the boxes of regions by RoIAlign with one cell on the map of unit features (CLIPSelf, ICLR 2024).

    Arguments and result as `pool`; windows are first averaged on one map at patch resolution.
    """
    from torchvision.ops import roi_align

    features_YXE, grid = unit_features(backbone, pixels, windows, recipe, hints, proxy_scope)
    h, w = (max(1, side // backbone.patch_size) for side in pixels.shape[2:])
    plan = grid.plan(h, w)
    rows, cols = plan.rows.matrix.to(features_YXE), plan.cols.matrix.to(features_YXE)
    map_Ehw = torch.einsum("hy,wx,yxe->ehw", rows, cols, features_YXE)
    height, width = masks.size
    scale = torch.tensor([w / width, h / height, w / width, h / height])
    boxes = torch.as_tensor(masks.boxes, dtype=torch.float32).reshape(-1, 4) * scale
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
    found = roi_align(map_Ehw[None], [boxes.to(map_Ehw)], output_size=1, aligned=True)[:, :, 0, 0]
    return F.normalize(found, dim=-1) * ~empty[:, None].to(found.device)
