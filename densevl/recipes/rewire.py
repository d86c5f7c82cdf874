"""Rewired blocks: a block's own norms, projections and MLP, composed as a `Recipe` says.

Nothing of the model is copied or edited: `blocks.py` gives a view of a block. Shape letters: B batch, N tokens
(leading ones first), D width, A heads, d head width, P width of compared features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn import functional as F

from densevl.kernels import affinity_apply
from densevl.recipes.attention import Looks, Projections, rewired_attention
from densevl.recipes.blocks import Block
from densevl.recipes.features import Hints
from densevl.recipes.feedback import score_feedback
from densevl.recipes.foveal import foveal_bias
from densevl.recipes.pairing import pair_heads
from densevl.recipes.parts import Foveal, ScoreFeedback, Smooth, Term, Values, scaled
from densevl.recipes.purify import Filler, filler
from densevl.recipes.recipe import ADAPTIVE, Recipe
from densevl.recipes.regions import at_patches, merge_alike, region_cls
from densevl.recipes.sinkhorn import balance, sharpen, summed_maps
from densevl.recipes.tower import Grid, Tower
from densevl.recipes.trunk import Trunk

WIDE_TOKENS = 4096  # whose hidden layer is held at once


class Rewirer:
    """Runs the rewired end of one batch: the trunk's tokens in, tokens after the last block out.

    Attributes:
        grid: (h, w) of the tokens that come out; the proxy's own where the recipe works on that.
        prefix: leading tokens among them.
    """

    def __init__(
        self, tower: Tower, trunk: Trunk, recipe: Recipe, hints: Hints, bias: torch.Tensor | None = None
    ) -> None:
        """`bias` (B, h*w, h*w) is added to the logits between patches."""
        self._tower, self._recipe, self._hints, self._bias = tower, recipe, hints, bias
        self._full = trunk
        self._trunk = trunk
        self.grid, self.prefix = trunk.grid, tower.prefix
        self._maps: torch.Tensor | None = None
        if recipe.patches_only:
            self._trunk = trunk.map(lambda tokens: tokens[:, tower.prefix :], trunk.grid)
            self.prefix = 0
        self._source_grid = trunk.grid
        if recipe.proxy is not None and recipe.proxy.fine:
            self.grid = hints.proxy.shape[-2], hints.proxy.shape[-1]
        self._regions = self._scope()
        self._fill: Filler = filler(recipe.purify, tower, trunk, self._trunk.x)
        self._sums: torch.Tensor | None = None

    def chain(self) -> torch.Tensor:
        """The last blocks one after the other: (B, N, D)."""
        x_BND = self._smooth(self._recipe.before, self._fill(self._trunk.x))
        for index in range(self._tower.depth - self._recipe.blocks, self._tower.depth):
            x_BND = self._block(index, x_BND, self._full.x[:, :1], self._recipe)
        return x_BND

    def further(self) -> list[torch.Tensor]:
        """The recipe's further sources of values through the last block, each (B, N, D)."""
        last, recipe = self._tower.depth - 1, self._recipe
        found, seen = [], set()
        for value in recipe.values:
            blocks = scaled(value.layers, self._tower.depth)
            if blocks in seen:  # a small tower has fewer blocks than the paper's
                continue
            seen.add(blocks)
            kept = tuple(replace(term, weight=1.0) for term in recipe.parts if term.kind == value.only)
            found.append(self._block(last, *self._source(value), replace(recipe, terms=kept) if kept else recipe))
        return found

    def dual(self) -> torch.Tensor:
        """The trained stream goes on; beside it the rewired attention outputs add up.

        Patches come from the sum, leading tokens from the trained stream.
        """
        x_BND = total_BND = self._trunk.x
        for index in range(self._tower.depth - self._recipe.dual_layers, self._tower.depth):
            total_BND = total_BND + self._attention(self._tower.view(index, self._source_grid), x_BND, self._recipe)
            x_BND = self._tower.run(index, x_BND, self._source_grid)
        return torch.cat([x_BND[:, : self.prefix], total_BND[:, self.prefix :]], dim=1)

    def _block(self, index: int, x_BND: torch.Tensor, cls_B1D: torch.Tensor, recipe: Recipe) -> torch.Tensor:
        block = self._tower.view(index, self._source_grid)
        y_BND = self._attention(block, x_BND, recipe)
        if recipe.residual:
            y_BND = x_BND + y_BND
        if recipe.cls_mix:
            y_BND = y_BND + recipe.cls_mix * cls_B1D
        if recipe.ffn:
            y_BND = y_BND + _by_tokens(block.ffn, y_BND)
        return self._smooth(recipe.after, y_BND)

    def _attention(self, block: Block, x_BND: torch.Tensor, recipe: Recipe) -> torch.Tensor:
        """The attention branch with the recipe's attention: (B, N, D)."""
        hints = self._hints
        own, token_norm = dict(self._trunk.qkv), None
        if not own or recipe.temperature == ADAPTIVE:
            u_BND = block.norm(x_BND)
            own = own or block.project(u_BND, recipe.needs)
            token_norm = u_BND.norm(dim=-1).mean(dim=1) if recipe.temperature == ADAPTIVE else None
        if recipe.proxy is not None and recipe.proxy.fine:
            own["v"] = self._refined(own["v"])
        literal = recipe.proxy is not None and recipe.proxy.literal
        looks = Looks(own, self.grid, self.prefix, self._others, self._compared, token_norm, batch_mean=literal)
        if self._regions is not None:
            looks = replace(looks, regions=self._regions.flatten(1), blank=self._blank(self._regions))
        if isinstance(recipe.bias, Foveal):
            looks = replace(looks, bias=foveal_bias(recipe.bias, hints, self._source_grid, self.prefix))
        elif self._bias is not None:
            looks = replace(looks, bias=F.pad(self._bias, (self.prefix, 0, self.prefix, 0))[:, None])
        if recipe.sinkhorn:
            return block.merge(self._next_maps() @ own["v"])
        if recipe.pairing is not None:
            proxy = self._proxy(self._source_grid)
            return block.merge(pair_heads(looks, recipe, recipe.pairing, proxy, hints.compat))
        if isinstance(recipe.feedback, ScoreFeedback) and hints.text is not None:
            return score_feedback(looks, recipe, recipe.feedback, hints.text, block, self._tower)
        return block.merge(rewired_attention(looks, recipe))

    def _next_maps(self) -> torch.Tensor:
        """CLIPer's maps. The authors balance the shared sum in place, so each further source has it balanced again."""
        if self._sums is None:
            by_block = {scaled((layer,), self._tower.depth): layer for layer in self._recipe.parts[0].layers}
            self._sums = summed_maps(list(by_block.values()), self._others)
        if self._maps is None or self._hints.compat:
            balanced = balance(self._sums)
            self._sums = balanced if self._hints.compat else self._sums
            self._maps = sharpen(balanced)
        return self._maps

    def _others(self, layer: int) -> Projections:
        """Projections of a block given for 12 blocks; several layers of a small tower may be the same block."""
        (number,) = scaled((layer,), self._tower.depth)
        block = self._tower.view(number - 1, self._source_grid)
        return block.project(block.norm(self._trunk.outputs[number - 1]), "qk")

    def _compared(self, term: Term) -> torch.Tensor:
        if term.kind == "proxy":
            return self._proxy(self.grid)
        return self._tap(term.layers[0], purified=self._recipe.purify is not None)

    def _tap(self, layer: int, purified: bool) -> torch.Tensor:
        tapped = self._trunk.outputs[scaled((layer,), self._tower.depth)[0]]
        return self._fill(tapped) if purified else tapped

    def _proxy(self, grid: Grid) -> torch.Tensor:
        """The proxy's features on a grid: (B, h*w, P)."""
        features = self._hints.proxy
        if tuple(features.shape[-2:]) != grid:
            features = F.interpolate(features, size=grid, mode="bilinear", align_corners=False)
        return features.flatten(2).mT

    def _refined(self, v: torch.Tensor) -> torch.Tensor:
        """Values (B, A, h*w, d) interpolated to the proxy's grid."""
        joined = v.transpose(1, 2).flatten(2).mT
        swapped = self._recipe.proxy is not None and self._recipe.proxy.literal
        grid = self._source_grid[::-1] if swapped else self._source_grid
        finer = F.interpolate(joined.unflatten(2, grid), size=self.grid, mode="bilinear", align_corners=False)
        return finer.flatten(2).mT.unflatten(2, (v.shape[1], -1)).transpose(1, 2)

    def _scope(self) -> torch.Tensor | None:
        """The segment map on the grid, regions merged if the recipe says so: (B, h, w)."""
        scope = self._recipe.scope
        if scope is None or self._hints.regions is None:
            return None
        ids = at_patches(self._hints.regions, self.grid)
        if scope.merge is not None:
            unit = F.normalize(self._proxy(self.grid), dim=-1)
            merged = [
                merge_alike(one, features, scope.merge, self._blank(one))
                for one, features in zip(ids, unit, strict=True)
            ]
            ids = torch.stack(merged)
        return ids

    def _blank(self, ids: torch.Tensor) -> int | None:
        """The id of no segment; the authors take the smallest there is."""
        scope = self._recipe.scope
        return int(ids.min()) if self._hints.compat else scope.blank if scope is not None else None

    def region_cls(self) -> torch.Tensor | None:
        """Each region's own image embedding at its patches, (B, N', D) on the grid of the other outputs, or None."""
        if self._recipe.scope is None or not self._recipe.scope.cls or self._regions is None:
            return None
        coarse = at_patches(self._regions, self._source_grid)
        painted = region_cls(self._tower, self._full, coarse).mT.unflatten(2, self._source_grid)
        return F.interpolate(painted, size=self.grid, mode="nearest").flatten(2).mT

    def _source(self, value: Values) -> tuple[torch.Tensor, torch.Tensor]:
        """A further source and its CLS."""
        layers = scaled(value.layers, self._tower.depth)
        if value.normed:
            block = self._tower.view(layers[0] - 1, self._source_grid)
            x_BND = block.norm(self._full.outputs[layers[0] - 1])
        else:
            x_BND = sum((self._full.outputs[layer] for layer in layers[1:]), start=self._full.outputs[layers[0]])
            x_BND = x_BND / len(layers) if value.mean else x_BND
        return x_BND[:, self._tower.prefix - self.prefix :], x_BND[:, :1]

    def mean_map(self) -> torch.Tensor | None:
        """The maps a Sinkhorn method made, averaged over heads, between patches: (B, h*w, h*w); or None."""
        return None if self._maps is None else self._maps.mean(dim=1)[:, self.prefix :, self.prefix :]

    def likeness(self) -> torch.Tensor | None:
        """How much alike patches are in the recipe's block, beyond what CLS shares with them: (B, h*w, h*w), or None.

        Mean over heads of the cosines of queries, keys and values, less those of CLS, not under 0 (CLIPtrase).
        """
        if not self._recipe.likeness:
            return None
        (number,) = scaled((self._recipe.likeness,), self._tower.depth)
        block = self._tower.view(number - 1, self._source_grid)
        parts = block.project(block.norm(self._full.outputs[number - 1]), "qkv").values()
        # A mean of cosines is a product of unit vectors side by side: one map, and never one for each head.
        unit = torch.cat([F.normalize(part, dim=-1).transpose(1, 2).flatten(2) for part in parts], dim=-1)
        alike, prefix = unit @ unit.mT / sum(part.shape[1] for part in parts), self._tower.prefix
        return (alike[:, prefix:, prefix:] - alike[:, :1, prefix:] * bool(prefix)).clamp(min=0)

    def joint(self, y_BNE: torch.Tensor) -> torch.Tensor:
        """Smoothing in the joint space."""
        return self._smooth(self._recipe.joint, y_BNE)

    def _smooth(self, smooth: Smooth | None, x_BND: torch.Tensor) -> torch.Tensor:
        if smooth is None:
            return x_BND
        compared = self._proxy(self.grid) if smooth.by == "proxy" else self._tap(smooth.layer, smooth.purified)
        patches = affinity_apply(
            F.normalize(compared, dim=-1), x_BND[:, self.prefix :], floor=smooth.floor, linear=True
        )
        return torch.cat([x_BND[:, : self.prefix], patches], dim=1)


def _by_tokens(run: Callable[[torch.Tensor], torch.Tensor], x_BND: torch.Tensor) -> torch.Tensor:
    """What `run` makes of each token for itself, some tokens at a time: an MLP is four times as wide inside."""
    if x_BND.shape[1] <= WIDE_TOKENS:
        return run(x_BND)
    return torch.cat([run(part) for part in x_BND.split(WIDE_TOKENS, dim=1)], dim=1)
