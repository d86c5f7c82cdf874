"""Regions embedded with masked attention, less what CLS sees everywhere: `balanced`.

From Rewatbowornwong et al., "Zero-guidance Segmentation Using Zero Segment Labels" (ICCV 2023). With masked attention
alone, a segment's vector keeps what CLS holds of the whole image. So CLS's own attention map is subtracted, less of it
the more the masked map resembles the unmasked one. Shape letters: B windows, R regions, A heads, N tokens (leading ones
first), D width.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densevl.backbones.base import Backbone
from densevl.errors import OptionError
from densevl.inference.windows import WindowGrid
from densevl.proposals.base import Proposals
from densevl.recipes.blocks import Block
from densevl.recipes.tower import Tower
from densevl.recipes.trunk import run_trunk
from densevl.regions.operators.pull import reaches
from densevl.regions.operators.queries import RULE, by_windows, cls_tower

REGIONS_AT_ONCE = 16  # attention maps of this many, (A, N, N) each, are held together


def balanced(
    backbone: Backbone,
    pixels: torch.Tensor,
    masks: Proposals,
    *,
    windows: WindowGrid | None = None,
    start: int = -4,
    spread: float = 5.0,
    threshold: float = 0.5,
) -> torch.Tensor:
    """Embed regions by the image's own tokens, which in the last blocks see only the region's patches and CLS.

    In each head of each block from `start` on: A is the softmax over the visible tokens, P over all tokens, g the row
    of CLS in P, rho the mean cosine of rows of A and P. The attention is A - w g with w = exp(-(rho + 1)^2 / spread).

    Args:
        backbone, pixels, masks, windows, threshold: as `cls_mask`.
        start: the first masked block, below 0 counted from the end; earlier blocks are shared. The paper masks the
            last 4 of 24. spread: above 0; near 0 nothing is subtracted.
    Returns:
        (R, E) float32 unit rows; zeros for an empty mask.

    Raises:
        ModelError: the model has no CLS, or fewer blocks than `start`.
        OptionError: spread is not above 0.
    """
    if not spread > 0:
        raise OptionError(f"spread is {spread}; it must be above 0")
    start = cls_tower(backbone, "balanced").depth + start if start < 0 else start

    def bias(cover_RN: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        best = reaches(cover_RN, cover_RN.amax(dim=1, keepdim=True))
        return torch.where(reaches(cover_RN, max(threshold, 1e-6)) | best, 0.0, -torch.inf)

    def look(tower: Tower, pixels: torch.Tensor, bias_BRN: torch.Tensor, *, start: int) -> torch.Tensor:
        trunk = run_trunk(tower, pixels, RULE, leave=tower.depth - start, taps=frozenset())
        blocks = [tower.view(index, trunk.grid) for index in range(start, tower.depth)]
        found = []
        for x_ND, bias_RN in zip(trunk.x_BND, bias_BRN.to(trunk.x_BND), strict=True):
            for few_rN in bias_RN.split(REGIONS_AT_ONCE):
                x_rND = x_ND.expand(len(few_rN), -1, -1)
                for block in blocks:
                    x_rND = _through(block, x_rND, few_rN, spread)
                found.append(tower.read(x_rND[:, :1])[:, 0])
        return torch.cat(found).view(*bias_BRN.shape[:2], -1)

    return by_windows(backbone, pixels, masks, windows, bias, "balanced", start, look=look)


def _through(block: Block, x_RND: torch.Tensor, bias_RN: torch.Tensor, spread: float) -> torch.Tensor:
    """Tokens of each region through one block."""
    own = block.project(block.norm(x_RND), "qkv")
    logits_RANN = own["q"] @ own["k"].mT / own["q"].shape[-1] ** 0.5
    free, seen = logits_RANN.softmax(dim=-1), (logits_RANN + bias_RN[:, None, None]).softmax(dim=-1)
    alike_R = F.cosine_similarity(seen, free, dim=-1).mean(dim=(1, 2))
    weight_R = torch.exp(-((alike_R + 1) ** 2) / spread)
    used = seen - weight_R[:, None, None, None] * free[:, :, :1]
    x_RND = x_RND + block.merge(used @ own["v"])
    return x_RND + block.ffn(x_RND)
