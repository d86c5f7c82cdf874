"""Scores spread by another model's affinity on its own grid, with peaks kept: the last step of CLIPer (ICCV 2025).

Shape letters: B batch, C channels, N places of the grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F


class SpreadOnGrid:
    """Resample scores to a grid, spread them there, and resample back; each channel keeps half of its peak's loss.

    A channel's peak is set halfway between its values before and after spreading, so that a small thing is not lost to
    its surroundings.
    """

    def __init__(
        self,
        spread: Callable[[torch.Tensor], torch.Tensor],
        grid: tuple[int, int],
        *,
        probabilities: bool = False,
    ) -> None:
        """Prepare.

        Args:
            spread: values (N, C) of the grid's places, row by row, to the same, spread by rows that sum to 1.
            grid: (h, w). probabilities: whether scores are at least 0 and peaks are set by scaling, as in CLIPer;
                otherwise by shifting, which suits a softmax over words.
        """
        self._spread, self.grid, self.probabilities = spread, grid, probabilities

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Spread the scores (1, C, H, W) of one image, each channel separately: the same shape, float32."""
        small = F.interpolate(scores.float(), size=self.grid, mode="bilinear", antialias=True)
        values = small.flatten(2)[0].mT.contiguous()
        spread = self._spread(values).mT.unflatten(1, self.grid)[None]
        before, after = (found.amax(dim=(2, 3), keepdim=True) for found in (small, spread))
        spread = (
            spread * ((before + after) / 2 / (after + 1e-5)) if self.probabilities else spread + (before - after) / 2
        )
        return F.interpolate(spread, size=scores.shape[-2:], mode="bilinear", align_corners=False)


def sharpened(map_NN: torch.Tensor, floor: float = 0.1) -> torch.Tensor:
    """Sharpen an attention map as in CLIPer: divide by column maxima, drop values under `floor`, normalise rows."""
    share = map_NN / (map_NN.amax(dim=0, keepdim=True) + 1e-5)
    share = share.masked_fill(share < floor, 0)
    return share / (share.sum(dim=1, keepdim=True) + 1e-5)


def through_heads(
    heads: list[tuple[torch.Tensor, torch.Tensor]], values_NC: torch.Tensor, floor: float = 0.1
) -> torch.Tensor:
    """Multiply values by the product of all heads' sharpened maps, the first head's outermost: (N, C).

    One map is held at a time, and their product is never formed.

    Args:
        heads: q, scaled, and k of each, (N, d).
    """
    for q_Nd, k_Nd in reversed(heads):
        logits = q_Nd.float() @ k_Nd.float().mT
        values_NC = sharpened(logits.softmax(dim=1), floor) @ values_NC
    return values_NC
