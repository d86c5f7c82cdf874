"""Views of transformer blocks: the same five parts whatever library built the block.

A view holds no weights. Supported: open_clip's residual attention blocks, with torch's MultiheadAttention or with
open_clip's own `Attention`. A block of another kind is refused by name.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from densevl.errors import RecipeError


class Block(Protocol):
    """What a recipe needs of a block. x and u are (B, N, D); projections are (B, A, N, d)."""

    def norm(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Layer norm before the attention."""

    def project(self, u_BND: torch.Tensor, which: str) -> dict[str, torch.Tensor]:
        """The projections named in `which` (a subset of "qkv"), split into heads; the others are not computed."""

    def merge(self, heads_BANd: torch.Tensor) -> torch.Tensor:
        """Heads joined, output projection, layer scale: the attention branch (B, N, D)."""

    def ffn(self, x_BND: torch.Tensor) -> torch.Tensor:
        """The MLP branch with its layer norm and layer scale, without the skip connection."""


class OpenClipBlock:
    """View of an open_clip residual attention block (batch first or not, plain or custom attention)."""

    def __init__(self, block: Any) -> None:
        self._block = block
        self._attn = block.attn
        self.heads: int = self._attn.num_heads

    def norm(self, x_BND: torch.Tensor) -> torch.Tensor:
        return self._block.ln_1(x_BND)

    def project(self, u_BND: torch.Tensor, which: str) -> dict[str, torch.Tensor]:
        weight, bias = self._attn.in_proj_weight, self._attn.in_proj_bias
        width = weight.shape[0] // 3
        result = {}
        for run in _runs(which):  # neighbours share one matrix product
            rows = slice("qkv".index(run[0]) * width, ("qkv".index(run[-1]) + 1) * width)
            joint = F.linear(u_BND, weight[rows], None if bias is None else bias[rows])
            for name, part in zip(run, joint.split(width, dim=-1), strict=True):
                result[name] = part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        for name, norm in (("q", "ln_q"), ("k", "ln_k")):
            if name in result and hasattr(self._attn, norm):
                result[name] = getattr(self._attn, norm)(result[name])
        return result

    def merge(self, heads_BANd: torch.Tensor) -> torch.Tensor:
        head_scale = getattr(self._attn, "head_scale", None)
        if head_scale is not None:
            heads_BANd = heads_BANd * head_scale
        y_BND = heads_BANd.transpose(1, 2).flatten(2)
        y_BND = self._attn.out_proj(getattr(self._attn, "ln_inner", nn.Identity())(y_BND))
        return self._block.ls_1(getattr(self._block, "ln_attn", nn.Identity())(y_BND))

    def ffn(self, x_BND: torch.Tensor) -> torch.Tensor:
        return self._block.ls_2(self._block.mlp(self._block.ln_2(x_BND)))


def _runs(which: str) -> list[str]:
    return {"qkv": ["qkv"], "qk": ["qk"], "kv": ["kv"], "qv": ["q", "v"]}.get(which, list(which))


def view(block: nn.Module) -> Block:
    """Return the view of a block.

    Raises:
        RecipeError: the block is of a kind densevl cannot take apart.
    """
    attn = getattr(block, "attn", None)
    known = (
        hasattr(attn, "in_proj_weight") and getattr(attn, "in_proj_weight", None) is not None and hasattr(block, "ln_1")
    )
    if not known or getattr(attn, "logit_scale", None) is not None:
        raise RecipeError(
            f"a block of type {type(block).__name__} has no plain q, k, v to rewire; use recipe 'vanilla'"
        )
    return OpenClipBlock(block)
