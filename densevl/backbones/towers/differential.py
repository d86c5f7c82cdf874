"""Differential attention (Ye et al., ICLR 2025) as in DiffCLIP, in place of the attention of open_clip's blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

START = 0.8
"""Initial weight of the second map; DiffCLIP uses it in all layers."""


class DifferentialAttention(nn.Module):
    """(A1 - lambda A2) V over pairs of heads, each pair normalised; called as `nn.MultiheadAttention` is."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        head = width // heads
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.diff_norm = nn.RMSNorm(2 * head, eps=1e-5)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(torch.zeros(head)) for _ in range(4)
        )

    def forward(
        self, x_BND: torch.Tensor, *_: Any, attn_mask: torch.Tensor | None = None, **__: Any
    ) -> tuple[torch.Tensor, None]:
        q, k, v = (
            layer(x_BND).unflatten(-1, (count, -1)).transpose(1, 2)
            for layer, count in ((self.q_proj, self.heads), (self.k_proj, self.heads), (self.v_proj, self.heads // 2))
        )
        # each pair of heads reads the same values
        both = F.scaled_dot_product_attention(q, k, v.repeat_interleave(2, dim=1), attn_mask=attn_mask)
        weight = (self.lambda_q1 * self.lambda_k1).sum().exp() - (self.lambda_q2 * self.lambda_k2).sum().exp() + START
        y = self.diff_norm(both[:, 0::2] - weight * both[:, 1::2]) * (1 - START)
        return self.out_proj(y.transpose(1, 2).flatten(2)), None


def make_differential(model: Any) -> None:
    """Replace the attention of both towers of open_clip's plain CLIP."""
    for stack in (model.visual.transformer, model.transformer):
        for block in stack.resblocks:
            block.attn = DifferentialAttention(block.attn.embed_dim, block.attn.num_heads)
