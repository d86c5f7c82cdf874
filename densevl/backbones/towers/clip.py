"""CLIP as densevl's own network: a ViT and a text transformer, with open_clip's tensor names.

It serves weights that need nothing else of open_clip, which takes longer to import than torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Block(nn.Module):
    """A transformer block with its layer norms first, (B, N, D) to (B, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ls_1 = nn.Identity()
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ls_2 = nn.Identity()

    def forward(self, x_BND: torch.Tensor, mask_NN: torch.Tensor | None = None) -> torch.Tensor:
        u_BND = self.ln_1(x_BND)
        x_BND = x_BND + self.attn(u_BND, u_BND, u_BND, need_weights=False, attn_mask=mask_NN)[0]
        return x_BND + self.mlp(self.ln_2(x_BND))


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])

    def forward(self, x_BND: torch.Tensor, mask_NN: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.resblocks:
            x_BND = block(x_BND, mask_NN)
        return x_BND


class VisionTransformer(nn.Module):
    """Normalised pixels (B, 3, S, S) to (B, E): patches, a CLS token, blocks, CLS projected. See `NativeViT`."""

    pool_type, attn_pool, final_ln_after_pool = "tok", None, False

    def __init__(
        self, embed_dim: int, *, image_size: int, patch_size: int, width: int, layers: int, head_width: int
    ) -> None:
        super().__init__()
        side = image_size // patch_size
        self.image_size, self.patch_size, self.grid_size = (image_size,) * 2, (patch_size,) * 2, (side, side)
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(side * side + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, width // head_width)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, embed_dim))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches_BnD = self.conv1(pixels).flatten(2).transpose(1, 2)
        cls_B1D = self.class_embedding.expand(len(pixels), 1, -1)
        x_BND = self.ln_pre(torch.cat([cls_B1D, patches_BnD], dim=1) + self.positional_embedding)
        return self.ln_post(self.transformer(x_BND)[:, 0]) @ self.proj


class CLIP(nn.Module):
    """The model of Radford et al. (Learning Transferable Visual Models From Natural Language Supervision, ICML 2021).

    Sizes are given as in open_clip's JSON files; other keywords raise a TypeError.
    """

    def __init__(self, embed_dim: int, vision_cfg: Mapping[str, Any], text_cfg: Mapping[str, Any]) -> None:
        super().__init__()
        self.visual = VisionTransformer(embed_dim, **vision_cfg)
        self._make_text(embed_dim, **text_cfg)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def _make_text(
        self, embed_dim: int, *, context_length: int, vocab_size: int, width: int, heads: int, layers: int
    ) -> None:
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.zeros(context_length, width))
        self.transformer = Transformer(width, layers, heads)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, embed_dim))

    def encode_image(self, pixels: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Normalised pixels (B, 3, S, S) to (B, E), of unit length if asked for."""
        return _unit(self.visual(pixels), normalize)

    def encode_text(self, tokens_TN: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Tokens (T, N) int64 to (T, E): the output at the end token, which has the largest number."""
        x_TND = self.token_embedding(tokens_TN) + self.positional_embedding
        later_NN = x_TND.new_full((tokens_TN.shape[1],) * 2, -math.inf).triu(1)
        x_TND = self.ln_final(self.transformer(x_TND, later_NN))
        rows = torch.arange(len(tokens_TN), device=tokens_TN.device)
        return _unit(x_TND[rows, tokens_TN.argmax(dim=-1)] @ self.text_projection, normalize)


def _unit(rows: torch.Tensor, wanted: bool) -> torch.Tensor:
    return nn.functional.normalize(rows, dim=-1) if wanted else rows
