"""Segments in the engine: merged, looked at by copies of CLS of their own, or pooled into tokens.

CorrCLIP (ICCV 2025) merges regions and gives each an image embedding of its own; TextRegion reads the last block's
values pooled over masks. Shape letters: B batch, R regions, N patches, D width, E joint space, P proxy width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from densevl.recipes.blocks import Block
from densevl.recipes.tower import Grid, Tower
from densevl.recipes.trunk import Trunk

MERGED = 10_000  # ids of merged regions start here, so that they cannot be those of the map
GLOBAL_MARGIN = 0.07  # TextRegion: a patch that is no more like its own regions than this is left out


def at_patches(regions_BHW: torch.Tensor, grid: Grid) -> torch.Tensor:
    """A segment map at the patches: (B, h, w), read by nearest neighbour."""
    ids = F.interpolate(regions_BHW[:, None].double(), size=grid, mode="nearest")
    return ids[:, 0].round().long()


def merge_alike(ids_hw: torch.Tensor, unit_NP: torch.Tensor, eps: float, blank: int | None) -> torch.Tensor:
    """Join regions whose mean features have a cosine within `eps` of the largest there is, links carried on."""
    flat = ids_hw.flatten()
    names, member = flat.unique(return_inverse=True)
    regions = [i for i, name in enumerate(names.tolist()) if name != blank]
    if len(regions) < 2:
        return ids_hw
    sums = torch.zeros(len(names), unit_NP.shape[1]).to(unit_NP).index_add(0, member, unit_NP)
    means = F.normalize(sums[regions], dim=-1)
    cosines = means @ means.mT
    near = (cosines.max() - cosines) <= eps
    cluster = torch.arange(len(regions), device=flat.device)
    while True:  # each region takes the smallest number among those it is linked with, until nothing changes
        spread = torch.where(near, cluster[None], len(regions)).amin(dim=1).minimum(cluster)
        if torch.equal(spread, cluster):
            break
        cluster = spread
    renamed = names.clone()
    renamed[regions] = MERGED + cluster
    return renamed[member].view_as(ids_hw)


def region_cls(tower: Tower, trunk: Trunk, ids_Bhw: torch.Tensor) -> torch.Tensor:
    """Tokens (B, N, D) after the last block: at each patch, a copy of CLS that saw only CLS and that patch's region.

    The copies are extra queries over the keys and values the tokens have anyway; tokens never see them, so the trained
    stream is as it was. Reads `trunk.outputs` of every block.
    """
    painted = []
    for image, ids in enumerate(ids_Bhw.flatten(1)):
        names, member = ids.unique(return_inverse=True)
        allowed = torch.ones(len(names), tower.prefix + len(ids), dtype=torch.bool, device=ids.device)
        allowed[:, tower.prefix :] = torch.arange(len(names), device=ids.device)[:, None] == member[None]
        query_1RD = trunk.outputs[0][image : image + 1, :1].expand(1, len(names), -1)
        for index in range(tower.depth):
            block = tower.view(index, trunk.grid)
            own = block.project(block.norm(trunk.outputs[index][image : image + 1]), "kv")
            query_1RD = through(block, query_1RD, own, allowed)
        painted.append(query_1RD[0, member])
    return torch.stack(painted)


def through(block: Block, query_BRD: torch.Tensor, own: Mapping[str, torch.Tensor], seen: torch.Tensor) -> torch.Tensor:
    """Copies of CLS (B, R, D) through one block: they ask the tokens, and no token asks them.

    Args:
        own: the tokens' "k" and "v", (B, A, N, d). seen: bool, or float added to the logits, broadcast to (B, A, R, N).
    """
    q = block.unrotated().project(block.norm(query_BRD), "q")["q"]
    query_BRD = query_BRD + block.merge(F.scaled_dot_product_attention(q, own["k"], own["v"], attn_mask=seen))
    return query_BRD + block.ffn(query_BRD)


def region_tokens(tower: Tower, trunk: Trunk, masks_BRHW: torch.Tensor) -> torch.Tensor:
    """Features (B, E, h, w): each mask read as one token, its unit feature painted where the mask is, overlaps added.

    r = O(mask . v); r += MLP(r); features = unit projection. Patches that are no more like the patches of their own
    masks than like others are left out of the pooling: they hold the image, not the place (TextRegion).
    """
    block = tower.view(tower.depth - 1, trunk.grid)
    own = trunk.qkv or block.project(block.norm(trunk.x), "v")
    values_BND = own["v"].transpose(1, 2).flatten(2)[:, tower.prefix :]
    small = F.interpolate(masks_BRHW.float(), size=trunk.grid, mode="bilinear", align_corners=False).clamp(0, 1)
    small_BRN = small.flatten(2).to(values_BND)
    pooled_BRN = small_BRN * ~_global_patches(values_BND, small_BRN)[:, None]
    heads = own["v"].shape[1]
    joined = (pooled_BRN @ values_BND).unflatten(2, (heads, -1)).transpose(1, 2)
    token_BRD = block.merge(joined)
    token_BRD = token_BRD + block.ffn(token_BRD)
    unit_BRE = F.normalize(tower.read(token_BRD), dim=-1) * (pooled_BRN.sum(dim=2, keepdim=True) > 0)
    return torch.einsum("bre,brn->ben", unit_BRE, small_BRN).unflatten(2, trunk.grid)


def _global_patches(values_BND: torch.Tensor, masks_BRN: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(values_BND, dim=-1)
    inside = (masks_BRN > 0).to(unit)
    kept = inside.sum(dim=2, keepdim=True) > 0
    belongs_BRN = inside @ unit @ unit.mT / inside.sum(dim=2, keepdim=True).clamp(min=1)
    mine, others = inside * kept, (1 - inside) * kept
    own = (belongs_BRN * mine).sum(dim=1) / (mine.sum(dim=1) + 1e-9)
    other = (belongs_BRN * others).sum(dim=1) / (others.sum(dim=1) + 1e-9)
    return own - other < GLOBAL_MARGIN
