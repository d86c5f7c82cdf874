"""Changes of style for one sprite: they push a model from a vendor's palette and shading towards shape.

A tile is float32 (h, w, 4), RGB premultiplied by alpha, both in 0..255.
"""

from __future__ import annotations

import cv2
import numpy as np

from .sprites import Mips, level_for

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Rotation of hue about the grey axis: identity * cos + cross-product * sin + grey projection * (1 - cos).
GREY_AXIS = np.full((3, 3), 1 / 3, np.float32)
AROUND = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], np.float32) / np.sqrt(3)


def warp(mips: Mips, rng: np.random.Generator, longest: float, strong: bool) -> np.ndarray:
    """Draw a sprite turned, mirrored and stretched so that the longer side of its box is about `longest` pixels.

    Args:
        mips: the drawing.
        rng: chooses the warp.
        longest: pixels.
        strong: up to 22 degrees, shear, aspect 0.8-1.25 and bends; otherwise up to 8 degrees and mirrored only.

    Returns:
        A tile cut to its visible box.
    """
    source = level_for(mips, longest)
    h, w = source.shape[:2]
    angle, shear, aspect = (rng.uniform(-1, 1, 3) * ((0.38, 0.15, 0.22) if strong else (0.14, 0, 0))).tolist()
    cos, sin, stretch = np.cos(angle), np.sin(angle), np.exp(aspect / 2)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[stretch, shear], [0, 1 / stretch]])
    if rng.random() < 0.5:
        matrix[:, 0] *= -1
    # The corners of a drawing are empty, so the box of the turned content is nearer to the upright box.
    matrix *= longest / (0.25 * (np.abs(matrix) @ (w, h)).max() + 0.75 * max(w, h))
    tw, th = (int(v) for v in np.ceil(np.abs(matrix) @ (w, h)))
    shift = np.array([tw / 2, th / 2]) - matrix @ (w / 2, h / 2)
    affine = np.column_stack([matrix, shift + (matrix.sum(1) - 1) / 2])
    tile = cv2.warpAffine(source, affine, (tw, th), flags=cv2.INTER_LINEAR)
    if strong and rng.random() < 0.3:
        tile = bend(tile, rng)
    return cut(tile.astype(np.float32))


def bend(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move the parts of a tile by a smooth random field of up to 6 % of its size."""
    h, w = tile.shape[:2]
    field = (rng.uniform(-0.06, 0.06, (4, 4, 2)) * (w, h)).astype(np.float32)
    shift = cv2.resize(field, (w, h), interpolation=cv2.INTER_CUBIC)
    x = shift[..., 0] + np.arange(w, dtype=np.float32)
    y = shift[..., 1] + np.arange(h, dtype=np.float32)[:, None]
    return np.asarray(cv2.remap(tile, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT))


def cut(tile: np.ndarray) -> np.ndarray:
    """Cut a tile to the box of what is at least half opaque; a tile without any stays whole."""
    x, y, w, h = cv2.boundingRect((tile[..., 3] > 127.5).view(np.uint8))
    return tile[y : y + h, x : x + w] if w else tile


def recolour(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Choose a colour change: a (3, 3) matrix and an offset (3,) in 0..255, applied as RGB' = M RGB + offset alpha."""
    kind = rng.random()
    if kind < 0.10:  # grey, sometimes tinted
        matrix = np.outer(1 + rng.uniform(-0.25, 0.25, 3) * (rng.random() < 0.5), LUMA)
    else:
        angle = rng.uniform(-np.pi, np.pi) if kind < 0.24 else rng.normal(0, 0.18)
        turn = np.eye(3) * np.cos(angle) + AROUND * np.sin(angle) + GREY_AXIS * (1 - np.cos(angle))
        saturation = rng.uniform(0.45, 1.5)
        matrix = (saturation * np.eye(3) + (1 - saturation) * np.outer(np.ones(3), LUMA)) @ turn
        matrix = matrix * np.exp(rng.uniform(-0.15, 0.15, 3))[:, None]
    contrast = np.exp(rng.uniform(-0.4, 0.25))
    offset = 255 * ((1 - contrast) * 0.5 + rng.uniform(-0.15, 0.15))
    return (matrix * contrast).astype(np.float32), np.full(3, offset, np.float32)


def outline(tile: np.ndarray, rng: np.random.Generator, longest: float) -> np.ndarray:
    """Imitate line art: flatten and pale the fills, darken the rim and sometimes the inner edges."""
    alpha = tile[..., 3]
    width = max(1, round(longest * rng.uniform(0.02, 0.045)))
    kernel = np.ones((width + 1, width + 1), np.uint8) if width > 1 else np.ones((3, 3), np.uint8)
    rim = alpha - cv2.erode(alpha, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    line = rim / 255
    if rng.random() < 0.6:
        luma = tile[..., :3] @ LUMA
        edges = cv2.morphologyEx(luma, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8))
        line = np.maximum(line, np.clip((edges - 24) / 40, 0, 1))
    pale = rng.uniform(0, 1) if rng.random() < 0.5 else 0.0
    fill = tile[..., :3] + pale * (alpha[..., None] - tile[..., :3])
    ink = rng.uniform(0, 60, 3).astype(np.float32) / 255
    tile[..., :3] = fill + line[..., None] * (alpha[..., None] * ink - fill)
    return tile


def flatten(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Imitate flat art: smooth the shading away and keep a few levels per channel."""
    step = rng.uniform(28, 64)
    smooth = cv2.medianBlur(np.clip(tile[..., :3], 0, 255).astype(np.uint8), 3 if min(tile.shape[:2]) < 40 else 5)
    levels = np.round(smooth / step) * np.float32(step)
    tile[..., :3] = np.minimum(levels, tile[..., 3:])
    return tile


def shade(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light a tile from one side: gain 1 - d to 1 + d along a random direction."""
    h, w = tile.shape[:2]
    down, across = rng.uniform(-0.35, 0.35, 2)
    gain = 1 + np.linspace(-down, down, h)[:, None] + np.linspace(-across, across, w)
    tile[..., :3] *= gain[..., None].astype(np.float32)
    return tile


def occlude(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut a corner or a disc away, about a tenth to a fifth of the tile; the mask follows."""
    h, w = tile.shape[:2]
    mask = np.ones((h, w), np.float32)
    centre = (int(rng.integers(w)), int(rng.integers(h)))
    cv2.circle(mask, centre, max(1, int(min(h, w) * rng.uniform(0.15, 0.28))), 0.0, -1)
    return tile * mask[..., None]


def restyle(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply a random choice of all changes above; the result is again a valid tile (0 <= RGB <= alpha <= 255)."""
    chance = rng.random(5)
    longest = max(tile.shape[:2])
    if chance[0] < 0.2:
        tile = flatten(tile, rng)
    if chance[1] < 0.85:
        matrix, offset = recolour(rng)
        tile[..., :3] = tile[..., :3] @ matrix.T + tile[..., 3:] * (offset / 255)
    if chance[2] < 0.25:
        tile = shade(tile, rng)
    np.clip(tile[..., :3], 0, tile[..., 3:], out=tile[..., :3])
    if chance[3] < 0.25:
        tile = outline(tile, rng, longest)
    return occlude(tile, rng) if chance[4] < 0.1 else tile


def spoil(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur a uint8 (H, W, 3) image one time in eight, add pixel noise one time in five."""
    chance = rng.random(2)
    if chance[0] < 0.125:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.9) * image.shape[0] / 64)
    if chance[1] < 0.2:
        grain = rng.standard_normal(image.shape, np.float32) * rng.uniform(3, 14)
        image = np.clip(image + grain, 0, 255).astype(np.uint8)
    return image
