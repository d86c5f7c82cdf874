"""SAM's image encoder with densevl's attention: the package's weights and values, without its tokens x tokens bias.

Kirillov et al., "Segment Anything" (ICCV 2023). Blocks are those of `segment_anything.modeling.ImageEncoderViT`; their
norms, projections and MLPs run as they are, and only the attention between them is `grid_attention`.

Shape letters: B images or windows, A heads, N = h*w tokens, D width, d head width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from densevl.kernels import RelPos, grid_attention
from densevl.kernels.common import runs
from densevl.kernels.linear import is_watched, through

MLP_TOKENS = 512  # tokens that pass through an MLP together on a CPU


@dataclass(frozen=True, eq=False)
class Projections:
    """The inputs of an attention layer; logits are q k^T / sqrt(d) + the relative position terms.

    Attributes:
        q, k, v: (B, A, N, d).
        rel: (B*A, N, h+w), from the unscaled q: the term of query i and the key at row y, column x is
            rel[i, y] + rel[i, h + x]; None for a layer without them.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    rel: torch.Tensor | None


def project(attn: Any, x_BhwD: torch.Tensor) -> Projections:
    """Queries, keys, values and relative position terms of an attention layer of `segment_anything`."""
    grid = x_BhwD.shape[1], x_BhwD.shape[2]
    heads = through(attn.qkv, x_BhwD).flatten(1, 2).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k, v = heads.unbind(0)
    rel = None
    if attn.use_rel_pos:
        from segment_anything.modeling.image_encoder import get_rel_pos

        q_grid = q.flatten(0, 1).unflatten(1, grid)
        rows = torch.einsum("bhwc,hkc->bhwk", q_grid, get_rel_pos(grid[0], grid[0], attn.rel_pos_h))
        columns = torch.einsum("bhwc,wkc->bhwk", q_grid, get_rel_pos(grid[1], grid[1], attn.rel_pos_w))
        rel = torch.cat([rows, columns], dim=-1).flatten(1, 2)
    return Projections(q, k, v, rel)


def run_block(block: Any, x_BhwD: torch.Tensor) -> torch.Tensor:
    """Run a block of `segment_anything`'s encoder: (B, h, w, D), equal to `block(x)` up to rounding."""
    from segment_anything.modeling.image_encoder import window_partition, window_unpartition

    if is_watched(block):
        return block(x_BhwD)
    side, size = block.window_size, (x_BhwD.shape[1], x_BhwD.shape[2])
    y_BhwD, padded = block.norm1(x_BhwD), size
    if side:
        y_BhwD, padded = window_partition(y_BhwD, side)
    grid = y_BhwD.shape[1], y_BhwD.shape[2]
    own = project(block.attn, y_BhwD)
    mixed = grid_attention(own.q, own.k, own.v, grid, bias=None if own.rel is None else RelPos(own.rel))
    y_BhwD = through(block.attn.proj, mixed.transpose(1, 2).flatten(2)).unflatten(1, grid)
    if side:
        y_BhwD = window_unpartition(y_BhwD, side, padded, size)
    x_BhwD = x_BhwD + y_BhwD
    tokens = x_BhwD.flatten(0, 2)
    # In runs, because otherwise the hidden layer is returned to the system after each block and faulted in again.
    parts = runs(len(tokens), MLP_TOKENS, whole=0 if tokens.device.type == "cpu" else len(tokens))
    mixed = [_mlp(block.mlp, block.norm2(tokens[rows])) for rows in parts]
    return x_BhwD + torch.cat(mixed).view(x_BhwD.shape)


def _mlp(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    if type(mlp).__module__ != "segment_anything.modeling.common":  # an adapter around it
        return mlp(x)
    return through(mlp.lin2, mlp.act(through(mlp.lin1, x)))


def run_encoder(encoder: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Preprocessed pixels (B, 3, S, S) to the image embedding (B, C, S/patch, S/patch).

    An encoder that is not `segment_anything`'s own, or one that is watched, runs as it is.
    """
    if type(encoder).__module__ != "segment_anything.modeling.image_encoder" or is_watched(encoder):
        return encoder(pixels)
    x_BhwD = embed(encoder, pixels)
    for block in encoder.blocks:
        x_BhwD = run_block(block, x_BhwD)
    return encoder.neck(x_BhwD.permute(0, 3, 1, 2))


def embed(encoder: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The input of the first block: (B, h, w, D)."""
    x_BhwD = encoder.patch_embed(pixels)
    return x_BhwD if encoder.pos_embed is None else x_BhwD + encoder.pos_embed
