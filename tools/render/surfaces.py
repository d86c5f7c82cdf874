"""Bare surfaces, flawless or damaged, with the exact mask of the damage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from densevl.errors import DensevlError, suggest

from .augment import spoil
from .captions import DEFECTS, surface_caption
from .scenes import Scene
from .textures import UNNAMED, TextureBook, all_textures, texture_of

TRAIN_DEFECTS = tuple(d for d in DEFECTS if d != "crack")
"""The kinds of damage in training; cracks stay unseen until the evaluation."""
NO_SURFACE = frozenset({"sky", "water", "night sky"})
"""Textures that nothing can scratch."""
FINE = 4
"""Damage is drawn this much finer than the pixels and averaged down."""
COVERED = 0.3
"""A pixel counts as damaged above this coverage; lines are about one pixel wide."""


def _walk(rng: np.random.Generator, side: int, length: float, steps: int, bendy: float) -> np.ndarray:
    """Return the corners of a random walk through the inner part of a square: float (steps + 1, 2), x and y."""
    headings = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bendy, steps))
    strides = rng.uniform(0.6, 1.4, (steps, 1)) * length / steps
    path = np.concatenate(
        [np.zeros((1, 2)), np.cumsum(strides * np.column_stack([np.cos(headings), np.sin(headings)]), 0)]
    )
    middle = (path.min(0) + path.max(0)) / 2
    return path - middle + rng.uniform(0.35, 0.65, 2) * side


def _lines(side: int, paths: Sequence[np.ndarray], width: float) -> np.ndarray:
    """Draw polylines `width` pixels wide: coverage float32 (side, side) in 0..1."""
    canvas = np.zeros((side * FINE, side * FINE), np.uint8)
    points = [np.round(path * FINE).astype(np.int32) for path in paths]
    cv2.polylines(canvas, points, False, 255, max(1, round(width * FINE)))
    return cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _blob(rng: np.random.Generator, side: int, radius: float, rough: float) -> np.ndarray:
    """Return signed depth inside a random round shape, in pixels, positive inside: float32 (side, side)."""
    centre = rng.uniform(radius * 1.2, side - radius * 1.2, 2)
    y, x = np.mgrid[:side, :side] - centre[:, None, None]
    angle = np.arctan2(y, x)
    reach = np.full_like(angle, radius)
    for wave in (2, 3, 4, 5):
        reach += radius * rough / wave * rng.normal() * np.cos(wave * angle + rng.uniform(0, 6.3))
    return (reach - np.hypot(y, x * rng.uniform(0.8, 1.25))).astype(np.float32)


def _scratch(rng: np.random.Generator, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    side = len(image)
    path = _walk(rng, side, side * rng.uniform(0.4, 0.8), 8, 0.06)
    cover = _lines(side, [path], rng.uniform(1.1, 1.9) * side / 64)
    bright = (image.mean() < 140) != (rng.random() < 0.15)
    colour = rng.uniform(225, 255) if bright else rng.uniform(15, 60)
    return cover, np.full(3, colour) + rng.uniform(-12, 12, 3)


def _hole(rng: np.random.Generator, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    side = len(image)
    depth = _blob(rng, side, side * rng.uniform(0.07, 0.15), 0.24)
    inside = np.clip(depth / (side / 12), 0, 1)[..., None]
    dark = image.mean((0, 1)) * 0.3 * (1 - inside) + rng.uniform(4, 26)
    return np.clip(depth + 0.5, 0, 1), dark


def _stain(rng: np.random.Generator, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    side = len(image)
    soft = side / 32
    cover = np.clip(_blob(rng, side, side * rng.uniform(0.1, 0.2), 0.35) / soft + 0.5, 0, 1)
    palette = ((92, 58, 28), (40, 34, 30), (126, 32, 40), (34, 56, 96), (70, 86, 30))
    ink = np.array(palette[int(rng.integers(len(palette)))]) + rng.uniform(-15, 15, 3)
    if image.mean() < 80:
        ink = 255 - ink * 0.8
    strength = rng.uniform(0.45, 0.75)
    return cover, image * (1 - strength) + ink * strength


def _crack(rng: np.random.Generator, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    side = len(image)
    trunk = _walk(rng, side, side * rng.uniform(0.6, 1.1), 14, 0.55)
    paths = [trunk]
    for _ in range(int(rng.integers(1, 4))):
        branch = _walk(rng, side, side * rng.uniform(0.12, 0.3), 5, 0.5)
        paths.append(branch - branch[0] + trunk[int(rng.integers(2, 12))])
    cover = _lines(side, paths, rng.uniform(0.7, 1.2) * side / 64)
    return cover, np.full(3, rng.uniform(190, 230) if image.mean() < 80 else rng.uniform(5, 30))


_PAINT: dict[str, Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "scratch": _scratch,
    "hole": _hole,
    "stain": _stain,
    "crack": _crack,
}


def damage(image: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Damage a surface.

    Args:
        image: uint8 (S, S, 3), left as it is.
        kind: one of `captions.DEFECTS`.
        rng: chooses place, shape and colour.

    Returns:
        The damaged image uint8 (S, S, 3), and bool (S, S): where it is damaged, never empty.
    """
    if kind not in _PAINT:
        raise DensevlError(f"no damage '{kind}'{suggest(kind, _PAINT)}; there are {', '.join(_PAINT)}")
    while True:
        cover, colour = _PAINT[kind](rng, image.astype(np.float32))
        mask = cover > COVERED
        if mask.sum() >= len(image) // 8:
            mixed = image + cover[..., None] * (np.clip(colour, 0, 255) - image)
            return (mixed + 0.5).astype(np.uint8), mask


def solid_textures() -> tuple[int, ...]:
    """Return the indices of the textures that can be damaged."""
    return tuple(i for i, t in enumerate(all_textures()) if t.name not in NO_SURFACE)


class SurfaceMaker:
    """Makes bare surfaces; everything follows from the seed.

    Args:
        size: side in pixels.
        seed: fixes textures and damage; use other seeds for training than for testing.
        textures: indices into `all_textures()`; the default is `solid_textures()`.
        defects: kinds of damage to choose from; the default leaves out cracks.
        share: how many surfaces are damaged, 0..1.
        variants: textures per material; 1 makes every crop part of the same surface, as on a production line.
        unnamed: share of the surfaces that have no name.
        augment: strong changes of light, blur and noise (training), or weak ones of light only.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        textures: Sequence[int] | None = None,
        defects: Sequence[str] = TRAIN_DEFECTS,
        share: float = 0.5,
        variants: int = 16,
        unnamed: float = 0.0,
        augment: bool = False,
    ) -> None:
        self.unnamed = unnamed
        self.size, self.defects, self.share, self.augment = size, tuple(defects), share, augment
        self.choices = solid_textures() if textures is None else tuple(textures)
        self.textures = TextureBook(size, seed, variants=variants, side=3 * size if variants == 1 else None)
        self.rng = np.random.default_rng(seed)

    def surface(self) -> Scene:
        """Make the next surface, damaged or not."""
        texture = self.choices[int(self.rng.integers(len(self.choices)))]
        if self.unnamed and self.rng.random() < self.unnamed:
            texture = UNNAMED
        damaged = self.rng.random() < self.share
        return self.of(texture, self.defects[int(self.rng.integers(len(self.defects)))] if damaged else None)

    def of(self, texture: int, defect: str | None) -> Scene:
        """Make a surface of one material with one kind of damage, or None for a flawless one.

        Returns:
            A `Scene` without objects whose `defect` mask is bool (S, S), empty if flawless.
        """
        image = self.textures.crop(texture, self.rng, self.size, 0.8 if self.augment else 0.25)
        mask = np.zeros(image.shape[:2], bool)
        if defect is not None:
            image, mask = damage(image, defect, self.rng)
        image = spoil(image, self.rng) if self.augment else image
        nothing = np.full(mask.shape, -1, np.int16)
        caption = surface_caption(texture_of(texture), defect, self.rng)
        return Scene(image, nothing, nothing, (), texture, caption, mask)
