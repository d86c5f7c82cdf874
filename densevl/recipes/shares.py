"""The image embedding of a CLS token as a sum of contributions by blocks, heads and tokens (Gandelsman et al., 2024).

Through attention, token n adds  c_n = sum over blocks and heads of a_(CLS, n) v_n W_o  to CLS. The last norm, with its
statistics for the image's own CLS token, is affine, so it splits as well: biases are divided evenly among all terms
that sum to CLS.
Shape letters: B batch, A heads, N tokens (CLS first), D width, d head width, E joint space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from densevl.errors import RecipeError
from densevl.lazy import torch

if TYPE_CHECKING:  # these import torch
    from densevl.recipes.blocks import Block
    from densevl.recipes.tower import Tower


class Split:
    """The read-out of a batch's CLS tokens, applied to parts of them.

    Attributes: embedding_BE: the image embeddings, not normalised.
    """

    def __init__(self, tower: Tower, x_BND: torch.Tensor) -> None:
        """Compute the norm's statistics.

        Args:
            x_BND: tokens after the last block.

        Raises:
            RecipeError: the tower does not read its embedding from CLS by a norm and a matrix.
        """
        readout = getattr(tower, "cls_readout", None)
        if readout is None:
            raise RecipeError("contributions split the CLS token, and this tower reads its image embedding otherwise")
        self._norm: Any = readout[0]
        self._projection_DE: torch.Tensor = readout[1]
        cls_B1D = x_BND[:, :1]
        self._mean_B11 = cls_B1D.mean(dim=-1, keepdim=True)
        self._deviation_B11 = (cls_B1D.var(dim=-1, unbiased=False, keepdim=True) + self._norm.eps).sqrt()
        self.embedding_BE = tower.pool(x_BND)

    def __call__(self, parts_BMD: torch.Tensor, share: float) -> torch.Tensor:
        """Parts of CLS in the joint space, divided by the norm of the embedding: (B, M, E); all sum to a unit vector.

        Args:
            share: fraction of the biases that each part gets; the fractions of all parts sum to 1.
        """
        centred_BMD = parts_BMD - share * self._mean_B11
        norm = self._norm
        parts_BME = (centred_BMD / self._deviation_B11 * norm.weight + share * norm.bias) @ self._projection_DE
        return parts_BME / self.embedding_BE.norm(dim=-1)[:, None, None]


def count(depth: int) -> int:
    """Number of even shares of the biases: the blocks, their MLPs, and the input of the first."""
    return 2 * depth + 1


def attention_parts(block: Block, x_BND: torch.Tensor, *, by_head: bool = False) -> torch.Tensor:
    """A block's attention's contributions to CLS by source token: (B, N, D); by head too, (B, A, N, D).

    The bias of the output projection is divided evenly.

    Args:
        x_BND: the input of the block.
    """
    qkv = block.project(block.norm(x_BND), "qkv")
    scale = qkv["q"].shape[-1] ** -0.5
    looks_BAN1 = (qkv["q"][:, :, :1] @ qkv["k"].mT * scale).softmax(dim=-1).mT
    values_BANd = looks_BAN1 * qkv["v"]
    bias_B1D = block.merge(torch.zeros_like(qkv["v"][:, :, :1]))
    if not by_head:
        return block.merge(values_BANd) - bias_B1D * (1 - 1 / x_BND.shape[1])
    heads = values_BANd.shape[1]
    alone = torch.eye(heads, dtype=values_BANd.dtype, device=values_BANd.device)[:, None, :, None, None]
    each_ABND = torch.stack([block.merge(values_BANd * only) for only in alone])
    return each_ABND.transpose(0, 1) - bias_B1D[:, None] * (1 - 1 / (heads * x_BND.shape[1]))
