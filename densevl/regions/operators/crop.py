"""Regions cropped and encoded one by one: slow, but it needs only the tower's image embedding.

OVSeg (Liang et al., CVPR 2023) crops the tight box and fills everything outside the mask with the mean colour.
Shape letters: R regions, S side of the tower's input, E joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from densevl.errors import OptionError, one_of
from densevl.proposals.base import Proposals
from densevl.regions.operators.pull import pixel_boxes
from densevl.regions.operators.trained import trained

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone

FILLS = ("mean", "zero", "blur", "keep")
SQUARES = ("stretch", "pad", "context")
BATCH = 32


def crop(
    backbone: Backbone,
    pixels: torch.Tensor,
    masks: Proposals,
    *,
    fill: str = "mean",
    expand: float | tuple[float, ...] = 1.0,
    square: str = "stretch",
) -> torch.Tensor:
    """Embed regions by encoding their crops.

    Args:
        pixels: (1, 3, H, W) normalised, best at the photo's own size, which is that of the masks.
        fill: what replaces pixels outside the mask: "mean", the mean colour of the model's statistics; "zero", black;
            "blur", the photo out of focus; "keep", the photo itself.
        expand: factor by which the box grows about its centre; several are averaged.
        square: "stretch" ignores the box's aspect ratio, as OVSeg does; "pad" pads to a square with the mean colour;
            "context" grows the box to a square, and pads what lies outside the photo.

    Returns:
        (R, E) float32 unit rows; zeros for an empty mask.

    Raises:
        OptionError: fill or square is unknown.
    """
    one_of(fill, FILLS, "fill", OptionError)
    one_of(square, SQUARES, "square", OptionError)
    photo = pixels[0]
    outside = background(photo, fill, backbone)
    height, width = photo.shape[1:]
    boxes = boxes_at(masks, (height, width))
    scales = (expand,) if isinstance(expand, (int, float)) else tuple(expand)
    side = input_side(backbone)

    def cut(index: int, scale: float) -> torch.Tensor:
        x0, y0, x1, y1 = grown(boxes[index], scale, (height, width), square == "context")
        piece = photo[:, y0:y1, x0:x1]
        if fill != "keep":
            inside = mask_at(masks.mask(index), (height, width), photo.device)[y0:y1, x0:x1]
            piece = torch.where(inside, piece, outside[:, y0:y1, x0:x1])
        return resized(piece, side, square != "stretch")

    return encode_each(
        backbone,
        len(masks),
        [i for i, (x0, y0, x1, y1) in enumerate(boxes) if x1 > x0 and y1 > y0],
        lambda index: (cut(index, scale) for scale in scales),
    )


def crop_prompted(
    backbone: Backbone,
    pixels: torch.Tensor,
    masks: Proposals,
    *,
    weights: str | Path,
    expand: float = 1.0,
) -> torch.Tensor:
    """Embed crops of regions with OVSeg's tower, which gets mask prompts for patches outside the mask.

    Args:
        pixels: as `crop`. weights: a file of OVSeg with mask prompts, for the backbone's architecture.
        expand: factor by which the box grows about its centre.

    Returns:
        (R, E) float32 unit rows; zeros for an empty mask.

    Raises:
        ModelError, WeightsError: see `trained`.
    """
    encode, side = trained(backbone, "crop_prompted", weights), input_side(backbone)
    photo = pixels[0]
    height, width = photo.shape[1:]
    boxes = boxes_at(masks, (height, width))

    def view(index: int) -> Iterable[torch.Tensor]:
        x0, y0, x1, y1 = grown(boxes[index], expand, (height, width), False)
        inside = mask_at(masks.mask(index), (height, width), photo.device)[None, y0:y1, x0:x1].to(photo)
        piece = photo[:, y0:y1, x0:x1] * inside  # 0 is the mean colour
        # Bicubic without antialiasing and nearest pixels, as in the paper's code: the prompts were trained on these.
        piece = F.interpolate(piece[None], size=(side, side), mode="bicubic", align_corners=False)[0]
        return (torch.cat([piece, F.interpolate(inside[None], size=(side, side), mode="nearest")[0]]),)

    return encode_each(backbone, len(masks), masks.areas.nonzero()[0].tolist(), view, encode)


@torch.no_grad()
def encode_each(
    backbone: Backbone,
    count: int,
    which: Iterable[int],
    views: Callable[[int], Iterable[torch.Tensor]],
    encode: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Mean unit embedding (count, E) of each region's views; zeros for the regions without any.

    Args:
        views: (3, S, S) each, or whatever `encode` takes a batch of; None takes the backbone's own image encoder.
    """
    encode = encode or backbone.encode_image
    total = torch.zeros(count, backbone.embed_dim, device=backbone.device)
    every = ((index, view) for index in which for view in views(index))
    while part := list(islice(every, BATCH)):
        owners = torch.tensor([index for index, _ in part], device=total.device)
        found = encode(torch.stack([view for _, view in part]))
        total.index_add_(0, owners, F.normalize(found.float(), dim=-1))
    return F.normalize(total, dim=-1)


def input_side(backbone: Backbone) -> int:
    """Side of the square image that `encode_image` takes."""
    from PIL import Image

    return backbone.preprocess(Image.new("RGB", (8, 8))).shape[-1]


def background(photo_3HW: torch.Tensor, fill: str, backbone: Backbone) -> torch.Tensor:
    """The fill outside masks, (3, H, W), or a colour expanded to (3, H, W), on normalised pixels."""
    if fill == "blur":
        return blurred(photo_3HW)
    if fill == "zero":
        black = [-mean / std for mean, std in zip(backbone.mean, backbone.std, strict=True)]
        return photo_3HW.new_tensor(black).view(3, 1, 1).expand_as(photo_3HW)
    return torch.zeros_like(photo_3HW)


def blurred(photo_3HW: torch.Tensor, share: float = 0.02) -> torch.Tensor:
    """A Gaussian blur with a standard deviation of `share` of the long side, at least a pixel; borders repeat."""
    std = max(1.0, share * max(photo_3HW.shape[1:]))
    reach = round(3 * std)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / std) ** 2)
    taps = (taps / taps.sum()).to(photo_3HW)
    padded = F.pad(photo_3HW[:, None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))[:, 0]


def boxes_at(masks: Proposals, size: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """x0, y0, x1, y1 of each mask, scaled to a photo of another size (H, W)."""
    scale_y, scale_x = size[0] / masks.size[0], size[1] / masks.size[1]
    return [(x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y) for x0, y0, x1, y1 in pixel_boxes(masks)]


def grown(
    box: tuple[float, float, float, float], scale: float, size: tuple[int, int], square: bool
) -> tuple[int, int, int, int]:
    """Scale a box about its centre, square it if asked, and clip it to the image; whole pixels, never empty."""
    x0, y0, x1, y1 = box
    half_x, half_y = (x1 - x0) / 2 * scale, (y1 - y0) / 2 * scale
    if square:
        half_x = half_y = max(half_x, half_y)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    left, top = (int(np.clip(np.floor(low), 0, end - 1)) for low, end in ((x - half_x, size[1]), (y - half_y, size[0])))
    right, bottom = (int(np.ceil(high)) for high in (x + half_x, y + half_y))
    return left, top, max(left + 1, min(right, size[1])), max(top + 1, min(bottom, size[0]))


def mask_at(mask: np.ndarray, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Resize a bool mask (H, W) to another size, by nearest pixel."""
    found = torch.from_numpy(np.ascontiguousarray(mask)).to(device)
    if tuple(found.shape) == tuple(size):
        return found
    return F.interpolate(found[None, None].float(), size=size, mode="nearest-exact")[0, 0] > 0.5


def resized(piece_3HW: torch.Tensor, side: int, pad: bool) -> torch.Tensor:
    """Resize a piece to (3, side, side), stretched or, with `pad`, in its own aspect ratio on the mean colour."""
    height, width = piece_3HW.shape[1:]
    if pad:
        long = max(height, width)
        above, left = (long - height) // 2, (long - width) // 2
        piece_3HW = F.pad(piece_3HW, (left, long - width - left, above, long - height - above))
    return F.interpolate(piece_3HW[None], size=(side, side), mode="bicubic", antialias=True, align_corners=False)[0]
