"""Training of adapters: losses on maps and images, and prompts whose words are learned.

Shape letters: B images, H/W pixels of the target, h/w grid, n learned words, W text width, E joint space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from densevl.errors import ModelError

if TYPE_CHECKING:
    from densevl.backbones import Backbone

FOCUS = 2.0  # exponent of the focal loss (Lin et al., ICCV 2017)


def map_loss(logits_Bhw: torch.Tensor, masks_BHW: torch.Tensor) -> torch.Tensor:
    """Focal loss plus Dice loss of both classes, at the size of the masks; a scalar."""
    logits = F.interpolate(logits_Bhw[:, None], size=masks_BHW.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    target = masks_BHW.to(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = ((1 - torch.exp(-entropy)) ** FOCUS * entropy).mean()
    p = logits.sigmoid()
    return focal + _dice(p, target) + _dice(1 - p, 1 - target)


def _dice(p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    both, either = (p * target).sum(dim=(1, 2)), (p + target).sum(dim=(1, 2))
    return (1 - (2 * both + 1) / (either + 1)).mean()


class LearnedPrompts(torch.nn.Module):
    """Two prompts of n learned words before a noun, run through the frozen text tower (CoOp, IJCV 2022)."""

    def __init__(self, backbone: Backbone, item: str, words: int, seed: int = 0) -> None:
        """Start from small random words.

        Raises:
            ModelError: the backbone's text side has no table of words.
        """
        super().__init__()
        if not hasattr(backbone, "encode_learned"):
            raise ModelError(f"model '{backbone.name}' has no text tower to learn words for; take a CLIP model")
        self._backbone: Any = [backbone]  # in a list, so that it is not registered as a submodule
        self.item = item
        generator = torch.Generator().manual_seed(seed)
        drawn = 0.02 * torch.randn(2, words, self._backbone[0].word_width, generator=generator)
        self.words = torch.nn.Parameter(drawn.to(backbone.device))

    def forward(self) -> torch.Tensor:
        """The two unit rows (2, E), normal and anomalous; gradients reach `words` only."""
        return F.normalize(self._backbone[0].encode_learned(self.words, self.item), dim=-1)
