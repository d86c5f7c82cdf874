"""timm towers whose patches a head after the trunk's last norm aligns with words.

There are three heads: further blocks and a norm (dino.txt), an attention pool in which every patch is a query (FG-CLIP
2), and an MLP on each token (RADIO's adaptors).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from densevl.backbones.towers.native import run_whole
from densevl.backbones.towers.timm_vit import TimmViT
from densevl.recipes.tower import Grid


class Speaking(nn.Module):
    """Pixels (B, 3, S, S) to image vectors (B, E): a timm trunk and a head that reads its patches.

    The image vector is the mean of the patches' vectors, or that of one leading token.
    """

    def __init__(self, trunk: Any, told: Mapping[str, Any]) -> None:
        """Build the head.

        Args:
            told: kind, "blocks", "pool" or "mlp"; embed, E; rule, how positions are resized. For "blocks" also depth,
                heads, hidden and qkv_bias; for "mlp" hidden and inner. Where they differ from the patches' mean
                and the trunk's own, also summary, the token of the image, and side, S.
        """
        super().__init__()
        self.trunk, self.told, self.head = trunk, dict(told), nn.Sequential()
        width, kind, embed = trunk.embed_dim, told["kind"], told["embed"]
        self.blocks = _blocks(width, told) if kind == "blocks" else nn.ModuleList()
        self.norm = nn.LayerNorm(width) if kind == "blocks" else nn.Identity()
        self.mlp = ResidualMlp(width, told["hidden"], embed, told["inner"]) if kind == "mlp" else nn.Identity()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tower = SpeakingViT(self, "")
        grid = pixels.shape[2] // tower.patch_size, pixels.shape[3] // tower.patch_size
        x_BND = tower.embed(pixels, tower.rule)
        for index in range(tower.depth):
            x_BND = tower.run(index, x_BND, grid)
        return tower.pool(x_BND)


class SpeakingViT(TimmViT):
    """A `Speaking` as a tower; for dino.txt, whose trunk is frozen, recipes rewire the head's blocks."""

    def __init__(self, visual: Speaking, name: str) -> None:
        """Inspect a built tower; nothing is copied."""
        super().__init__(visual, name)
        told = visual.told
        self.rule: str = told["rule"]
        self.embed_dim, self.reads_cls = told["embed"], False
        self.image_size = (told["side"],) * 2 if "side" in told else self.image_size
        self._below = TimmViT(visual, name) if visual.blocks else None
        if self._below is not None:
            self._blocks, self.depth, self._whole = visual.blocks, len(visual.blocks), run_whole(visual.blocks)
            self.kind = f"a head of {self.depth} blocks on a frozen ViT"

    def embed(self, pixels: torch.Tensor, rule: str) -> torch.Tensor:
        below = self._below
        if below is None:
            return super().embed(pixels, rule)
        grid = pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size
        x_BND = below.embed(pixels, rule)
        for index in range(below.depth):
            x_BND = below.run(index, x_BND, grid)
        return self._trunk.norm(x_BND)

    def read(self, y_BND: torch.Tensor) -> torch.Tensor:
        if self._below is not None:
            return self._visual.norm(y_BND)
        y_BND = self._trunk.norm(y_BND)
        return self._visual.mlp(y_BND if self._attn_pool is None else _asked_by_all(self._attn_pool, y_BND))

    def pool(self, x_BND: torch.Tensor) -> torch.Tensor:
        y_BNE, summary = self.read(x_BND), self._visual.told.get("summary")
        return y_BNE[:, self.prefix :].mean(dim=1) if summary is None else y_BNE[:, summary]

    def _rope(self, index: int, grid: Grid) -> torch.Tensor | None:
        return None if self._below is not None else super()._rope(index, grid)


class ResidualMlp(nn.Module):
    """The second form of RADIO's adaptors: a linear layer, residual steps, and an output layer."""

    def __init__(self, width: int, hidden: int, embed: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.blocks = nn.ModuleList(_step(hidden, hidden) for _ in range(inner))
        self.final = _step(hidden, embed)

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        x_BND = self.fc1(x_BND)
        for block in self.blocks:
            x_BND = x_BND + block(x_BND)
        return self.final(x_BND)


def _step(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, out))


def _blocks(width: int, told: Mapping[str, Any]) -> nn.ModuleList:
    """Blocks of timm with a gated MLP; their norms add 1e-5, as dino.txt's do."""
    from timm.layers import SwiGLUPacked
    from timm.models.vision_transformer import Block

    return nn.ModuleList(
        Block(
            width,
            told["heads"],
            2 * told["hidden"] / width,
            qkv_bias=told["qkv_bias"],
            init_values=1.0,
            norm_layer=nn.LayerNorm,
            act_layer=nn.SiLU,
            mlp_layer=SwiGLUPacked,  # type: ignore[arg-type]  # what makes one
        )
        for _ in range(told["depth"])
    )


def _asked_by_all(pool: Any, x_BND: torch.Tensor) -> torch.Tensor:
    """timm's attention pool with every token as a query instead of its one query."""
    q, k, v = (
        part.unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for part in (pool.q(x_BND), *pool.kv(x_BND).chunk(2, dim=-1))
    )
    y_BND = pool.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    return y_BND + pool.mlp(pool.norm(y_BND))
