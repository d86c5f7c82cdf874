"""The engine: runs a `Recipe` on the last block(s) of a transformer tower, with the tower's own weights.

Nothing of the model is copied or edited. `blocks.py` gives a view of a block (its norms, projections, MLP); this file
composes them as the recipe says. Shape letters: B batch, N tokens (CLS first), D width, A heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from densevl.errors import RecipeError
from densevl.kernels.reference import grid_attention
from densevl.recipes.blocks import Block, view
from densevl.recipes.recipe import ADAPTIVE, Recipe

PREFIX = 1  # CLS


def run_blocks(
    blocks: Sequence[torch.nn.Module], x_BND: torch.Tensor, recipe: Recipe, grid: tuple[int, int]
) -> torch.Tensor:
    """Run a stack of blocks with its end rewired: (B, N, D) before the first block to (B, N, D) after the last.

    Raises:
        RecipeError: the recipe wants more blocks than the tower has.
    """
    count = recipe.dual_layers or 1
    if count > len(blocks):
        raise RecipeError(
            f"recipe '{recipe.name}' rewires {count} blocks, the tower has {len(blocks)}; use another recipe"
        )
    if recipe.is_native:
        count = 0
    for block in blocks[: len(blocks) - count]:
        x_BND = block(x_BND)
    if recipe.dual_layers:
        return _run_dual(blocks[-count:], x_BND, recipe, grid)
    for block in blocks[len(blocks) - count :]:
        x_BND = _run_rewired(view(block), x_BND, recipe, grid)
    return x_BND


def _run_rewired(block: Block, x_BND: torch.Tensor, recipe: Recipe, grid: tuple[int, int]) -> torch.Tensor:
    y_BND = _attention_branch(block, x_BND, recipe, grid)
    if recipe.residual:
        y_BND = x_BND + y_BND
    return y_BND + block.ffn(y_BND) if recipe.ffn else y_BND


def _run_dual(
    blocks: Sequence[torch.nn.Module], x_BND: torch.Tensor, recipe: Recipe, grid: tuple[int, int]
) -> torch.Tensor:
    """The trained stream goes on; beside it the rewired attention outputs add up. Patches from the sum, CLS trained."""
    total_BND = x_BND
    for block in blocks:
        total_BND = total_BND + _attention_branch(view(block), x_BND, recipe, grid)
        x_BND = block(x_BND)
    return torch.cat([x_BND[:, :PREFIX], total_BND[:, PREFIX:]], dim=1)


def _attention_branch(block: Block, x_BND: torch.Tensor, recipe: Recipe, grid: tuple[int, int]) -> torch.Tensor:
    u_BND = block.norm(x_BND)
    projections = block.project(u_BND, recipe.needs)
    heat = u_BND.norm(dim=-1).mean(dim=1) if recipe.temperature == ADAPTIVE else None
    return block.merge(rewired_attention(projections, recipe, grid, heat))


def rewired_attention(
    projections: dict[str, torch.Tensor],
    recipe: Recipe,
    grid: tuple[int, int],
    token_norm_B: torch.Tensor | None = None,
    prefix: int = PREFIX,
) -> torch.Tensor:
    """A recipe's attention applied to the values: (B, A, N, d).

    Args:
        projections: "q", "k", "v" as far as `recipe.needs` names them, each (B, A, N, d), N = prefix + h*w.
        recipe: terms, combination, metric, temperature, bias.
        grid: (h, w).
        token_norm_B: mean Euclidean norm of the block's normalised tokens, for an adaptive temperature.
        prefix: leading tokens that are not patches.

    Each term is one attention call and no N x N map is held; a sum of logits is one call on concatenated features.
    No mean over the batch appears, so an image's result does not depend on its neighbours in the batch.
    """
    v = projections["v"]
    width = v.shape[-1]
    keys = slice(None) if recipe.cls_key else slice(prefix, None)
    std = recipe.bias.std if recipe.bias else None
    scale = 1.0 if recipe.metric == "cosine" else width**-0.5
    heat: torch.Tensor | float
    if recipe.temperature == ADAPTIVE and token_norm_B is not None:
        heat = (token_norm_B / width**0.5).view(-1, 1, 1, 1)
    else:
        heat = float(recipe.temperature)

    def attend(a: torch.Tensor, b: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return grid_attention(a * heat, b[:, :, keys], values[:, :, keys], grid, prefix, std, scale)

    def sides(term: str) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = projections[term[0]], projections[term[1]]
        if recipe.metric == "cosine":
            a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
        for _ in range(recipe.iterations):
            a = b = F.normalize(attend(a, b, b), dim=-1)
        return a, b

    soft_terms = [term for term in recipe.terms if term != "id"]
    if recipe.combine == "logit-sum" and len(soft_terms) > 1:
        a, b = (torch.cat(side, dim=-1) for side in zip(*map(sides, soft_terms), strict=True))
        padded = F.pad(v, (0, a.shape[-1] - width))  # equal widths keep SDPA on its fast path
        out = attend(a, b, padded)[..., :width]
    else:
        parts = [attend(*sides(term), v) for term in soft_terms] + [v] * ("id" in recipe.terms)
        out = sum(parts[1:], start=parts[0])
        if recipe.combine == "prob-mean":
            out = out / len(parts)
    return out if recipe.gain == 1.0 else out * recipe.gain
