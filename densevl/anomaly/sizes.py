"""The size at which an image is fed, and its augmented copies for a memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional as F

GAINS = (0.85, 0.9, 0.95, 0.97, 1.03, 1.06, 1.12, 1.18)  # brightness of stand-ins for normal images
LONGEST = 4
"""An image longer than this many times its short side is squeezed to that ratio, which bounds its cost."""


def fit_size(height: int, width: int, short: int, patch: int) -> tuple[int, int]:
    """The fed size in pixels: the given short side, the aspect ratio up to `LONGEST`, both in whole patches."""
    scale = short / min(height, width)
    sides = (min(side * scale, LONGEST * short) for side in (height, width))
    fed_height, fed_width = (max(1, round(side / patch)) * patch for side in sides)
    return fed_height, fed_width


def shrink(rgb: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Resize uint8 RGB (H, W, 3) to (height, width), bicubic and antialiased, so that thin damage is not skipped."""
    if rgb.shape[:2] == size:
        return rgb
    return np.array(Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def augmented(pixels: torch.Tensor, kind: str) -> list[torch.Tensor]:
    """Pixels (B, 3, H, W), and with "flips" their three mirror images; "rotations" adds quarter turns: up to eight."""
    if kind == "none":
        return [pixels]
    mirrored = [pixels, pixels.flip(3), pixels.flip(2), pixels.flip((2, 3))]
    if kind == "flips":
        return mirrored
    return mirrored + [view.mT.contiguous() for view in mirrored]


def varied(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float], patch: int) -> list[torch.Tensor]:
    """Stand-ins for further normal images if there is only one: mirrored, shifted within a patch, and relit.

    Args:
        pixels: (B, 3, H, W), normalised by `mean` and `std` per channel.
    """
    means, deviations = (torch.tensor(each, device=pixels.device).view(1, 3, 1, 1) for each in (mean, std))
    black = -means / deviations
    views = []
    for number, (gain, view) in enumerate(zip(GAINS, augmented(pixels, "flips") * 2, strict=True)):
        down, right = ((number + 1) * patch // 5 % patch, (2 * number + 1) * patch // 5 % patch)
        padded = F.pad(view, (0, right, 0, down), mode="reflect") if min(view.shape[2:]) > patch else view
        moved = padded[:, :, padded.shape[2] - view.shape[2] :, padded.shape[3] - view.shape[3] :]
        views.append(((moved - black) * gain + black).contiguous())
    return views
