"""Regions of the image inside the tower: attention within them, an embedding of each, or tokens pooled over masks.

Shape letters: B batch, R regions, N patches, D width, E joint space, P width of a proxy's features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from densevl.errors import RecipeError
from densevl.lazy import F, torch
from densevl.recipes.batch import Batch, Outcome, Pass
from densevl.recipes.features import DenseFeatures
from densevl.recipes.part import Addition, Part, Proxy, Readout, Slots, found
from densevl.recipes.values import positive

if TYPE_CHECKING:
    from densevl.recipes.blocks import Block
    from densevl.recipes.tower import Grid, Tower
    from densevl.recipes.trunk import Trunk

SMALLEST = "smallest"
GLOBAL_MARGIN = 0.07  # TextRegion: leave out patches whose similarity to their own regions is no higher by this


@dataclass(frozen=True, repr=False)
class Regions(Part):
    """A segment map that limits attention (CorrCLIP, ICCV 2025).

    Attributes:
        merge: merge regions whose mean proxy features are this close to the cosine of the closest pair; None: do not.
        blank: the id of no region; its patches attend wherever the cosine is above the mean. None if every patch
            belongs to a region; "smallest" takes an image's smallest id, as in the authors' code.
    """

    merge: float | None = None
    blank: int | str | None = 0

    def __post_init__(self) -> None:
        if isinstance(self.blank, str) and self.blank != SMALLEST:
            raise RecipeError(f"blank is {self.blank!r}; it is an id, None or {SMALLEST!r}")

    @property
    def own_reads(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"regions"} if self.merge is None else {"regions", "proxy"})

    def objection(self, recipe: Slots) -> str | None:
        if self.merge is not None and not found(Proxy, recipe.attention):
            return "regions are merged by the features that the attention borrows; compare those of a Proxy"
        return None

    def tokens(self, batch: Batch, grid: Grid) -> tuple[torch.Tensor, int | None]:
        """The region of each patch (B, N), and the id of no region."""
        return self.on(batch, grid).flatten(1), self._none

    def on(self, batch: Batch, grid: Grid) -> torch.Tensor:
        """The map at the patches of a grid, with regions merged: (B, h, w)."""
        return batch.once((self, grid), lambda: self._at(batch, grid))

    def _at(self, batch: Batch, grid: Grid) -> torch.Tensor:
        ids_Bhw = at_patches(batch.hints.regions, grid)  # type: ignore[arg-type]  # the engine asked for it
        if self.blank == SMALLEST:
            ids_Bhw = ids_Bhw.masked_fill(ids_Bhw == ids_Bhw.amin(dim=(1, 2), keepdim=True), -1)
        if self.merge is None:
            return ids_Bhw
        unit_BNP = F.normalize(batch.proxy(grid), dim=-1)
        pairs = zip(ids_Bhw, unit_BNP, strict=True)
        return torch.stack([merge_alike(ids, unit, self.merge, self._none) for ids, unit in pairs])

    @property
    def _none(self) -> int | None:
        return -1 if isinstance(self.blank, str) else self.blank


@dataclass(frozen=True, repr=False)
class RegionEmbedding(Addition):
    """Each region's own image embedding at its patches: a copy of CLS that sees only the region (CorrCLIP).

    Attributes: within: the regions. weight: of their features.
    """

    needs_cls = True

    within: Regions
    weight: float = 0.5

    def __post_init__(self) -> None:
        positive(self.weight, "the weight of a region's embedding")

    def own_taps(self, depth: int) -> frozenset[int]:
        return frozenset(range(depth))

    def tokens(self, run: Pass, through: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        batch, grid = run.batch, run.batch.trunk.grid
        coarse_Bhw = at_patches(self.within.on(batch, run.grid), grid)
        painted = region_cls(batch.tower, batch.trunk, coarse_Bhw).mT.unflatten(2, grid)
        patches_BND = F.interpolate(painted, size=run.grid, mode="nearest").flatten(2).mT
        return [torch.cat([run.x_BND[:, : run.prefix], patches_BND], dim=1)]

    def __str__(self) -> str:
        return f"{self.weight:g} of each region's own image embedding is added"


@dataclass(frozen=True, repr=False)
class PooledRegions(Readout):
    """Values of the last block pooled over each mask, read as one token and painted back (TextRegion, TMLR 2025).

    Painted features are unit vectors, summed where masks overlap, and words are compared by the dot product.
    """

    own_reads = frozenset({"masks"})
    leaves: ClassVar[int] = 1
    projects = "v"
    needs_trunk = True
    cosine = False

    def read(self, batch: Batch, outcome: Outcome, embed: Callable[[torch.Tensor], torch.Tensor]) -> DenseFeatures:
        return DenseFeatures(region_tokens(batch, embed), compare=_dot)

    def __str__(self) -> str:
        return "values of the last block pooled over each mask, read as one token and painted back"


def _dot(dense: DenseFeatures, text_TD: torch.Tensor, foreground_T: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bdhw,td->bhwt", dense.features.float(), text_TD)


def at_patches(regions_BHW: torch.Tensor, grid: Grid) -> torch.Tensor:
    """A segment map at the patches: (B, h, w), read by nearest neighbour."""
    ids = F.interpolate(regions_BHW[:, None].double(), size=grid, mode="nearest")
    return ids[:, 0].round().long()


def merge_alike(ids_hw: torch.Tensor, unit_NP: torch.Tensor, eps: float, blank: int | None) -> torch.Tensor:
    """Join regions whose mean features have a cosine within `eps` of the largest one, transitively."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    flat = ids_hw.flatten()
    names, member = flat.unique(return_inverse=True)
    regions = [i for i, name in enumerate(names.tolist()) if name != blank]
    if len(regions) < 2:
        return ids_hw
    sums = torch.zeros(len(names), unit_NP.shape[1]).to(unit_NP).index_add(0, member, unit_NP)
    means = F.normalize(sums[regions], dim=-1)
    cosines = means @ means.mT
    near = (cosines.max() - cosines) <= eps
    cluster = torch.from_numpy(connected_components(csr_array(near.numpy(force=True)), directed=False)[1])
    renamed = names.clone()
    renamed[regions] = max(int(names.max()), blank or 0) + 1 + cluster.to(names)  # avoids the map's ids and `blank`
    return renamed[member].view_as(ids_hw)


def region_cls(tower: Tower, trunk: Trunk, ids_Bhw: torch.Tensor) -> torch.Tensor:
    """Tokens (B, N, D) after the last block: at each patch, a copy of CLS that saw only CLS and that patch's region.

    The copies are extra queries over the tokens' keys and values; tokens never see them, so the trained stream does not
    change. Reads `trunk.outputs` of every block.
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
    """Copies of CLS (B, R, D) through one block: they attend to the tokens, and no token attends to them.

    Args:
        own: the tokens' "k" and "v", (B, A, N, d). seen: bool, or float added to the logits, broadcast to (B, A, R, N).
    """
    q = block.unrotated().project(block.norm(query_BRD), "q")["q"]
    query_BRD = query_BRD + block.merge(F.scaled_dot_product_attention(q, own["k"], own["v"], attn_mask=seen))
    return query_BRD + block.ffn(query_BRD)


def region_tokens(batch: Batch, embed: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Features (B, E, h, w): each mask read as one token, its unit feature painted on the mask, overlaps summed.

    r = O(mask . v); r += MLP(r); features = unit projection. Patches that are hardly more similar to the patches of
    their own masks than to others are left out of the pooling: they represent the image, not the place.
    """
    tower, trunk = batch.tower, batch.trunk
    block = tower.view(tower.depth - 1, trunk.grid)
    v = (trunk.qkv or block.project(block.norm(trunk.x_BND), "v"))["v"]
    values_BND = v.transpose(1, 2).flatten(2)[:, trunk.prefix :]
    masks_BRHW = batch.hints.masks.float()  # type: ignore[union-attr]  # the engine asked for them
    small = F.interpolate(masks_BRHW, size=trunk.grid, mode="bilinear", align_corners=False).clamp(0, 1)
    small_BRN = small.flatten(2).to(values_BND)
    pooled_BRN = small_BRN * ~_global_patches(values_BND, small_BRN)[:, None]
    joined = (pooled_BRN @ values_BND).unflatten(2, (v.shape[1], -1)).transpose(1, 2)
    token_BRD = block.merge(joined)
    token_BRD = token_BRD + block.ffn(token_BRD)
    unit_BRE = F.normalize(embed(token_BRD), dim=-1) * (pooled_BRN.sum(dim=2, keepdim=True) > 0)
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
