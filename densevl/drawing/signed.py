"""Draw maps of negative and positive numbers over a photo, and a bar that explains the colours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from densevl.drawing.colours import FAINT, INK, PAPER, UInt8Array
from densevl.drawing.text import line

LOW: npt.NDArray[np.float32] = np.array((20, 80, 200), np.float32)
HIGH: npt.NDArray[np.float32] = np.array((205, 20, 40), np.float32)
GREY = 0.55
"""How much a photo loses its colours under a map, so that red and blue belong to the map."""
STRENGTH = 0.85


def draw_signed(image: UInt8Array, values_hw: npt.NDArray[np.floating], limit: float) -> UInt8Array:
    """Draw a map over a greyed photo: red for positive numbers, blue for negative ones, transparent at 0.

    Args:
        image: uint8 RGB (H, W, 3). values_hw: cells of equal size that cover the photo, interpolated bilinearly.
        limit: the value with full colour, above 0.
    """
    size = image.shape[1], image.shape[0]
    cells = Image.fromarray(np.asarray(values_hw, np.float32) / np.float32(limit or 1))
    values = np.clip(np.array(cells.resize(size, Image.Resampling.BILINEAR)), -1, 1)[..., None]
    photo = image.astype(np.float32)
    photo = photo * (1 - GREY) + photo.mean(axis=2, keepdims=True) * GREY
    alpha = STRENGTH * np.sqrt(np.abs(values))
    return np.clip(photo * (1 - alpha) + np.where(values < 0, LOW, HIGH) * alpha + 0.5, 0, 255).astype(np.uint8)


def signed_bar(limit: float, width: int, low: str = "against", high: str = "for") -> UInt8Array:
    """Draw the colours of `draw_signed` from -limit to limit with their values: uint8 RGB (h, width, 3).

    Args:
        low, high: what the two ends mean.
    """
    size = max(12, width // 60)
    sheet = Image.new("RGB", (width, round(3.4 * size)), PAPER)
    long, left = min(width * 2 // 3, 40 * size), size
    grey = np.full((size, long, 3), 200, np.uint8)
    ramp = np.linspace(-1, 1, long, dtype=np.float32)[None]
    sheet.paste(Image.fromarray(draw_signed(grey, ramp, 1.0)), (left, size // 2))
    draw = ImageDraw.Draw(sheet)
    texts = (f"{-limit:.2g} {low}", "0", f"+{limit:.2g} {high}")
    for text, share in zip(texts, (0.0, 0.5, 1.0), strict=True):
        at, label = left + share * (long - 1), line(text, size)
        draw.line((at, size // 2, at, 1.75 * size), fill=FAINT)
        label.draw(draw, at - share * label.length, 2.5 * size, INK)
    return np.array(sheet)
