"""What each patch adds to the image embedding by itself: the exact split of CLS (text-based decomposition, ICLR 2024).

Through attention, patch n adds  c_n = sum over blocks and heads of a_(CLS, n) v_n W_o  to CLS. The last norm, with the
statistics it has for the image's own CLS token, is affine, so it splits as well: the biases are shared out evenly
over everything that adds up to CLS. Shape letters: B batch, A heads, N tokens, D width, E joint space.
"""

from __future__ import annotations

import torch

from densevl.errors import RecipeError
from densevl.recipes.features import DenseFeatures
from densevl.recipes.tower import Tower


def contributions(tower: Tower, pixels: torch.Tensor, rule: str) -> DenseFeatures:
    """Features (B, E, h, w): each patch's direct share in the image embedding, divided by the embedding's norm.

    Their dot products with a unit text vector add up, with the shares of CLS and of the MLPs, to the image's cosine.

    Raises:
        RecipeError: the tower's image embedding is not read from a CLS token.
    """
    readout = getattr(tower, "cls_readout", None)
    if readout is None:
        raise RecipeError("contributions split the CLS token, and this tower reads its image embedding otherwise")
    grid = pixels.shape[2] // tower.patch_size, pixels.shape[3] // tower.patch_size
    x_BND = tower.embed(pixels, rule)
    total_BND = torch.zeros_like(x_BND)
    for index in range(tower.depth):
        block = tower.view(index, grid)
        qkv = block.project(block.norm(x_BND), "qkv")
        scale = qkv["q"].shape[-1] ** -0.5
        looks_BAN1 = (qkv["q"][:, :, :1] @ qkv["k"].mT * scale).softmax(dim=-1).mT
        bias = block.merge(torch.zeros_like(qkv["v"][:, :, :1]))
        total_BND += block.merge(looks_BAN1 * qkv["v"]) - bias * (1 - 1 / x_BND.shape[1])
        x_BND = tower.run(index, x_BND, grid)
    parts = (2 * tower.depth + 1) * x_BND.shape[1]  # blocks and their MLPs, and what enters them; over the tokens
    embedding_BE = tower.pool(x_BND)
    norm, projection_DE = readout
    cls_B1D, share = x_BND[:, :1], tower.depth / parts
    centred_BND = total_BND - share * cls_B1D.mean(dim=-1, keepdim=True)
    deviation_B11 = (cls_B1D.var(dim=-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    shares_BNE = (centred_BND / deviation_B11 * norm.weight + share * norm.bias) @ projection_DE
    features_BNE = shares_BNE / embedding_BE.norm(dim=-1)[:, None, None]
    features = features_BNE[:, tower.prefix :].mT.unflatten(2, grid)
    return DenseFeatures(features=features, cls=embedding_BE, scoring="contrast")
