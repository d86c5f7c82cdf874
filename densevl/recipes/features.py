"""What goes into a recipe besides pixels, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class DenseFeatures:
    """Patch features of a batch of equally sized images.

    Attributes:
        features: (B, D, h, w) float, in the joint space of text and image, not L2-normalised.
        cls: (B, D) float, the image-level feature that came out of the same pass, or None.
        affinity: (B, h*w, h*w) float: how scores spread between places, rows sum to 1 unless a method says
            otherwise; or None.
        layers: features of further sources, each as `features`; only methods that fuse scores over layers have any.
        scoring: how text is compared with the features; see `recipes.scoring`.
    """

    features: torch.Tensor
    cls: torch.Tensor | None = None
    affinity: torch.Tensor | None = None
    layers: tuple[torch.Tensor, ...] = ()
    scoring: str = "cosine"

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the patch grid."""
        return self.features.shape[-2], self.features.shape[-1]


@dataclass(frozen=True)
class Hints:
    """What some recipes read besides the pixels; a recipe that needs one and gets none says so.

    Attributes:
        text: (T, D) unit rows, for methods that look twice (the first labels steer the second pass).
        proxy: (B, P, h', w') features of another model for the same pixels, for methods that borrow its affinity.
        regions: (B, H, W) integer segment map, 0 where no segment is, at any size: attention stays within a segment; or
            (B, R, H, W) masks for a method that pools over masks.
        boxes: (B, 4) x0, y0, x1, y1 in pixels of the input: where a box-guided method looks.
        pixels: (B, 3, H, W), the input itself.
        sam: `LastAttention` of SAM's encoder for the whole image, for methods that spread by it.
        compat: follow the authors' code where it differs from what it means to do.
    """

    text: torch.Tensor | None = None
    proxy: Any = None
    regions: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    pixels: torch.Tensor | None = None
    sam: Any = None
    compat: bool = False
