"""The cosine of an image and a text as a sum over patches, heads, blocks and MLPs (Gandelsman et al., ICLR 2024).

Shape letters: L blocks, A heads, N tokens (CLS first), D width, E joint space, T texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from densevl.errors import ModelError, RecipeError
from densevl.recipes import shares
from densevl.recipes.tower import Grid, Tower

AS_TRAINED = "size"
"""How positions are resized; at the trained size they are as they were trained by every rule."""
GAP = 1e-4
"""Of a sum of parts to the score itself, in float32."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What adds up to the cosines of one image with T unit texts.

    Attributes:
        attention_TLAN: by text, block, head, and the token that CLS looks at. mlps_TL: by text and block.
        start_T: what enters the first block. score_T: the cosines themselves, of the model's own embedding.
        grid: (h, w) of the patches. prefix: tokens before them.
    """

    attention_TLAN: torch.Tensor
    mlps_TL: torch.Tensor
    start_T: torch.Tensor
    score_T: torch.Tensor
    grid: Grid
    prefix: int

    @property
    def sum_T(self) -> torch.Tensor:
        """The sum of all parts."""
        return self.attention_TLAN.sum((1, 2, 3)) + self.mlps_TL.sum(1) + self.start_T


def require_split(tower: Tower | None, name: str) -> Tower:
    """Refuse a tower whose embedding is not read from CLS by a norm and a matrix.

    Raises:
        ModelError: with the reason.
    """
    reason = ""
    if tower is None:
        reason = "it is no CLIP"
    elif not tower.depth:
        reason = f"its tower is {tower.kind}, without blocks"
    elif not tower.reads_cls:
        reason = "its image embedding is pooled from all patches, not read from a CLS token"
    elif getattr(tower, "muted", None):
        reason = "some of its heads are muted"
    elif getattr(tower, "cls_readout", None) is None:
        reason = "its image embedding is not read from CLS by a norm and a matrix alone"
    if not reason and tower is not None:
        try:
            tower.view(0, (1, 1))
        except RecipeError as error:
            reason = str(error).split("; ")[0]
    if reason or tower is None:
        other = "a native ViT, such as ViT-B-16/openai"
        other = "the model as it was before `mute`" if getattr(tower, "muted", None) else other
        raise ModelError(f"scores of model '{name}' cannot be split: {reason}; take {other}")
    return tower


def split_score(
    tower: Tower, pixels: torch.Tensor, embedding_E: torch.Tensor, text_TE: torch.Tensor, name: str
) -> Parts:
    """Split the cosines of an image with texts.

    Args:
        pixels: (1, 3, H, W) normalised, of the trained size. embedding_E: the model's own, of any length.
        text_TE: unit rows, or sums of such, whose scores are sums of cosines. name: of the model, for messages.

    Raises:
        ModelError: the parts do not add up to the score, as where a tower norms what its heads give.
    """
    outputs, grid = _outputs(tower, pixels)
    split = shares.Split(tower, outputs[-1])
    pieces, tokens = shares.count(tower.depth), outputs[0].shape[1]
    attention, mlps = [], []
    for index, x_BND in enumerate(outputs[:-1]):
        block = tower.view(index, grid)
        part_BAND = shares.attention_parts(block, x_BND, by_head=True)
        mlp_B1D = block.ffn(x_BND[:, :1] + part_BAND.sum((1, 2))[:, None])
        heads = part_BAND.shape[1]
        part_BME = split(part_BAND.flatten(1, 2), 1 / (pieces * tokens * heads))
        attention.append((part_BME @ text_TE.mT)[0].mT.unflatten(1, (heads, tokens)))
        mlps.append((split(mlp_B1D, 1 / pieces) @ text_TE.mT)[0, 0])
    start_BME = split(outputs[0][:, :1], 1 / pieces)
    found = Parts(
        torch.stack(attention, dim=1),
        torch.stack(mlps, dim=1),
        (start_BME @ text_TE.mT)[0, 0],
        F.normalize(embedding_E, dim=0) @ text_TE.mT,
        grid,
        tower.prefix,
    )
    gap = float((found.sum_T - found.score_T).abs().max())
    if not gap <= GAP:
        raise ModelError(
            f"scores of model '{name}' cannot be split: the parts differ from the score by {gap:.2g}, as its attention "
            "is no sum over tokens and heads; take a native ViT, such as ViT-B-16/openai"
        )
    return found


def head_vectors(tower: Tower, pixels: torch.Tensor, block: int, head: int) -> torch.Tensor:
    """What one head adds to the unit embeddings of images, summed over all tokens: (B, E).

    Args:
        pixels: (B, 3, H, W) normalised, of the trained size. block, head: from 0.
    """
    outputs, grid = _outputs(tower, pixels)
    split = shares.Split(tower, outputs[-1])
    parts_BAND = shares.attention_parts(tower.view(block, grid), outputs[block], by_head=True)
    share = 1 / (shares.count(tower.depth) * parts_BAND.shape[1])
    return split(parts_BAND[:, head].sum(1, keepdim=True), share)[:, 0]


def _outputs(tower: Tower, pixels: torch.Tensor) -> tuple[list[torch.Tensor], Grid]:
    """Tokens before the first block and after each."""
    grid = pixels.shape[2] // tower.patch_size, pixels.shape[3] // tower.patch_size
    outputs = [tower.embed(pixels, AS_TRAINED)]
    for index in range(tower.depth):
        outputs.append(tower.run(index, outputs[-1].clone(), grid))
    return outputs, grid
