"""A recipe's attention applied to values: each term one way of looking, their results mixed.

No term holds an N x N map unless its method needs the map itself. Shape letters: B batch, A heads, N tokens, d head
width, P width of compared features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from densevl.kernels import Gaussian as Neighbourhood
from densevl.kernels import affinity_apply, affinity_mean, grid_attention
from densevl.recipes.parts import AFFINITIES, Floor, Gaussian, Relative, Softmax, Term
from densevl.recipes.recipe import ADAPTIVE, Recipe
from densevl.recipes.tower import Grid

Projections = dict[str, torch.Tensor]
JOINED_TOKENS = 4096  # for which the joined features of all heads are held


@dataclass(frozen=True)
class Looks:
    """Everything attention may be made of, for one block.

    Attributes:
        own: "q", "k", "v" of the block as far as needed, each (B, A, N, d), N = prefix + h*w.
        grid: (h, w); prefix: leading tokens that are not patches.
        others: projections of another block by its number, given for 12 blocks.
        compared: for a term by "tap" or "proxy", the (B, N, P) features whose cosines it takes.
        token_norm: (B,) mean Euclidean norm of the block's normalised tokens, for an adaptive temperature.
        regions: (B, N) integers, for terms that stay within regions; blank: the one that is no segment.
        bias: (B, 1 or A, N, N) added to the logits of the block's own terms.
        batch_mean: take means of cosines over the whole batch, as some of the papers' code does.
    """

    own: Projections
    grid: Grid
    prefix: int
    others: Callable[[int], Projections]
    compared: Callable[[Term], torch.Tensor]
    token_norm: torch.Tensor | None = None
    regions: torch.Tensor | None = None
    blank: int | None = None
    bias: torch.Tensor | None = None
    batch_mean: bool = False


def rewired_attention(looks: Looks, recipe: Recipe) -> torch.Tensor:
    """Mix the terms of a recipe: (B, A, N, d).

    Each softmax term is one attention call; a sum of logits is one call on concatenated features. No mean over the
    batch appears unless asked for, so an image's result does not depend on its neighbours in the batch.
    """
    if recipe.combine == "logit-sum" and len(recipe.parts) > 1:
        out = _sum_of_logits(looks, recipe)
    else:
        first, *others = recipe.parts
        out = first.weight * look(looks, recipe, first)
        for term in others:
            out = out + term.weight * look(looks, recipe, term)
        if recipe.combine == "prob-mean":
            out = out / sum(term.weight for term in recipe.parts)
    return out if recipe.gain == 1.0 else out * recipe.gain


def look(looks: Looks, recipe: Recipe, term: Term, v: torch.Tensor | None = None) -> torch.Tensor:
    """One term applied to values (B, A, N, d), the block's own unless others are given."""
    v = looks.own["v"] if v is None else v
    if term.kind == "id":
        return v
    if term.kind in AFFINITIES:
        return _by_affinity(looks, term, v)
    if term.layers:
        # Maps of other blocks are taken as those blocks make them: no bias, no temperature.
        plain, unbiased = Recipe("plain", cls_key=recipe.cls_key), replace(looks, bias=None)
        maps = [_attend(unbiased, plain, *_sides(unbiased, plain, looks.others(n), term), v) for n in term.layers]
        return sum(maps[1:], start=maps[0]) / len(maps)
    return _attend(looks, recipe, *_sides(looks, recipe, looks.own, term), v)


def _attend(looks: Looks, recipe: Recipe, a: torch.Tensor, b: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    width, prefix = looks.own["v"].shape[-1], looks.prefix
    keys = slice(None) if recipe.cls_key else slice(prefix, None)
    scale = 1.0 if recipe.metric == "cosine" else width**-0.5
    if recipe.temperature == ADAPTIVE and looks.token_norm is not None:
        a = a * (looks.token_norm / width**0.5).view(-1, 1, 1, 1)
    else:
        scale *= float(recipe.temperature)
    std = recipe.bias.std if isinstance(recipe.bias, Gaussian) else None
    bias = None if looks.bias is None else looks.bias[..., keys]
    near = None if std is None else Neighbourhood(std)
    return grid_attention(a, b[:, :, keys], v[:, :, keys], looks.grid, prefix, near, scale, extra=bias)


def _sides(looks: Looks, recipe: Recipe, of: Projections, term: Term) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = of[term.kind[0]], of[term.kind[1]]
    if recipe.metric == "cosine":
        a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    for _ in range(recipe.iterations):
        a = b = F.normalize(_attend(looks, recipe, a, b, b), dim=-1)
    return a, b


def _sum_of_logits(looks: Looks, recipe: Recipe) -> torch.Tensor:
    """One attention on the terms' features side by side; over many tokens a head at a time, as they are copies."""
    v = looks.own["v"]
    heads, tokens, width = v.shape[1:]
    sides = [_sides(looks, recipe, looks.own, term) for term in recipe.parts]
    step = 1 if tokens > JOINED_TOKENS and looks.bias is None else heads
    parts = []
    for head in range(0, heads, step):
        some = slice(head, head + step)
        a = torch.cat([side[0][:, some] * term.weight for side, term in zip(sides, recipe.parts, strict=True)], dim=-1)
        b = torch.cat([side[1][:, some] for side in sides], dim=-1)
        padded = F.pad(v[:, some], (0, a.shape[-1] - width))  # equal widths keep SDPA on its fast path
        parts.append(_attend(looks, recipe, a, b, padded)[..., :width])
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _by_affinity(looks: Looks, term: Term, v: torch.Tensor) -> torch.Tensor:
    """Cosines of tapped or borrowed features, one map for all heads, applied to the heads side by side."""
    unit = F.normalize(looks.compared(term), dim=-1)
    joined = v.transpose(1, 2).flatten(2)
    regions = looks.regions if term.regions else None
    match term.rule:
        case Relative(gamma, beta, floor):
            mean = affinity_mean(unit, floor)
            if looks.batch_mean:
                mean = mean.mean().expand_as(mean)
            out = affinity_apply(
                unit, joined, gamma=gamma, beta=beta, floor=floor, regions=regions, blank=looks.blank, mean=mean
            )
        case Floor(floor):
            out = affinity_apply(unit, joined, floor=floor, linear=True, regions=regions, blank=looks.blank)
        case _:  # Softmax, the only rule left: a Term checks what it is given
            gamma = term.rule.temperature if isinstance(term.rule, Softmax) else 1.0
            out = affinity_apply(unit, joined, gamma=gamma, regions=regions, blank=looks.blank)
    return out.unflatten(2, (v.shape[1], -1)).transpose(1, 2)
