"""Regions marked on the photo by drawing: a red circle, a contour, the surroundings blurred or grey.

Shtedritski et al., "What does CLIP know about a red circle?" (ICCV 2023); FGVP (NeurIPS 2023). Each region and style is
encoded as an image of its own, which suits referring expressions but is expensive for naming.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from densevl.errors import OptionError, one_of
from densevl.proposals.base import Proposals
from densevl.regions.operators.crop import blurred, encode_each, input_side, mask_at
from densevl.regions.operators.pull import pixel_boxes

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone

STYLES = ("circle", "contour", "blur", "grey")
RED = (1.0, 0.0, 0.0)
LUMINANCE = (0.299, 0.587, 0.114)
LINE = 200  # line width is the long side over this, at least one pixel
OUT_OF_FOCUS = 0.05  # deviation of the blur outside a mask, as a fraction of the long side


def visual_prompt(
    backbone: Backbone, pixels: torch.Tensor, masks: Proposals, *, style: str | tuple[str, ...] = "circle"
) -> torch.Tensor:
    """Embed regions by encoding the whole photo with the region marked.

    Args:
        pixels: (1, 3, H, W) normalised. masks: R masks of that photo, at any size.
        style: "circle", a red ellipse in the box; "contour", the mask's outline in red; "blur" and "grey", everything
            outside the mask out of focus or without colour. Several are averaged.

    Returns:
        (R, E) float32 unit rows; zeros for an empty mask.

    Raises:
        OptionError: a style is unknown.
    """
    styles = (style,) if isinstance(style, str) else tuple(style)
    for each in styles:
        one_of(each, STYLES, "style", OptionError)
    side = input_side(backbone)
    photo = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True, align_corners=False)[0]
    mean, std = (photo.new_tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    red = (photo.new_tensor(RED).view(3, 1, 1) - mean) / std
    grey = ((photo * std + mean) * photo.new_tensor(LUMINANCE).view(3, 1, 1)).sum(dim=0, keepdim=True)
    others = {"blur": blurred(photo, OUT_OF_FOCUS), "grey": (grey - mean) / std}
    boxes, (height, width) = pixel_boxes(masks), masks.size
    line = max(1.0, side / LINE)

    def draw(index: int, style: str) -> torch.Tensor:
        if style == "circle":
            x0, y0, x1, y1 = boxes[index]
            box = (x0 * side / width, y0 * side / height, x1 * side / width, y1 * side / height)
            return torch.where(_ellipse(box, side, line).to(photo.device), red, photo)
        inside = mask_at(masks.mask(index), (side, side), photo.device)
        if style == "contour":
            return torch.where(_outline(inside, round(line)), red, photo)
        return torch.where(inside, photo, others[style])

    which = [i for i, (x0, y0, x1, y1) in enumerate(boxes) if x1 > x0 and y1 > y0]
    return encode_each(backbone, len(masks), which, lambda index: (draw(index, style) for style in styles))


def _ellipse(box: tuple[float, float, float, float], side: int, line: float) -> torch.Tensor:
    """The line of the ellipse inscribed in a box: bool (side, side)."""
    x0, y0, x1, y1 = box
    radius_x, radius_y = max((x1 - x0) / 2, line), max((y1 - y0) / 2, line)
    at = torch.arange(side) + 0.5
    x, y = (at[None] - (x0 + x1) / 2) / radius_x, (at[:, None] - (y0 + y1) / 2) / radius_y
    distance = (x**2 + y**2).sqrt()
    # To first order the distance in pixels from the curve is its value over the length of its gradient.
    slope = ((x / radius_x) ** 2 + (y / radius_y) ** 2).sqrt() / distance.clamp(min=1e-6)
    return (distance - 1).abs() / slope.clamp(min=1e-6) <= line / 2 + 0.35


def _outline(inside_HW: torch.Tensor, line: int) -> torch.Tensor:
    """The border of a mask, inside and out: bool (H, W)."""
    value = inside_HW[None, None].float()
    size = 2 * line + 1
    wide = F.max_pool2d(value, size, stride=1, padding=line)
    narrow = -F.max_pool2d(-value, size, stride=1, padding=line)
    return (wide != narrow)[0, 0]
