"""Drawings of nouns as small premultiplied images; tests bring their own by `SpriteBook(drawings)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from . import art
from .nouns import all_nouns

Mips = tuple[np.ndarray, ...]
"""One drawing, largest first, each half as large as the one before: uint8 (h, w, 4), RGB premultiplied by alpha."""

SMALLEST = 12


def mipmaps(sprite: np.ndarray) -> Mips:
    """Return the sprite and its halvings (area average) down to `SMALLEST` pixels on the longest side.

    Args:
        sprite: uint8 (h, w, 4), RGB premultiplied by alpha.
    """
    levels = [np.ascontiguousarray(sprite)]
    while max(levels[-1].shape[:2]) >= 2 * SMALLEST:
        h, w = levels[-1].shape[:2]
        half = (max(1, (w + 1) // 2), max(1, (h + 1) // 2))
        levels.append(cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA))
    return tuple(levels)


def level_for(mips: Mips, longest: float) -> np.ndarray:
    """Return the smallest level that still has `longest` pixels on its longest side, or the largest there is."""
    return next((m for m in reversed(mips) if max(m.shape[:2]) >= longest), mips[0])


def sprite_size(side: int) -> int:
    """Return the size at which sprites are rendered for scenes of a side: 96 pixels up to 137, then 192."""
    return 96 if side * 0.7 <= 96 else 192


class SpriteBook:
    """All drawings of the nouns, looked up by noun index and style.

    Attributes:
        styles: the style names, sorted.
        nouns: the noun indices that have at least one drawing, ascending.
    """

    def __init__(self, drawings: Mapping[tuple[int, str], Sequence[np.ndarray]]) -> None:
        """Take drawings from anywhere; this is the seam by which tests do without npm and a renderer.

        Args:
            drawings: uint8 (h, w, 4) sprites, RGB premultiplied by alpha, per (noun index, style); empty lists are
                ignored.
        """
        self._mips = {key: tuple(mipmaps(s) for s in sprites) for key, sprites in drawings.items() if sprites}
        self.styles = tuple(sorted({style for _, style in self._mips}))
        self.nouns = tuple(sorted({noun for noun, _ in self._mips}))
        self._styles_of = {n: tuple(s for s in self.styles if (n, s) in self._mips) for n in self.nouns}

    @classmethod
    def load(cls, styles: Sequence[str], size: int, folder: Path | None = None) -> SpriteBook:
        """Load the drawings of some styles, rendering those not yet in the cache.

        Args:
            styles: names from `art.STYLES`.
            size: longest side of the largest mipmap in pixels.
            folder: the art cache; the default is `art.default_folder()`.

        Raises:
            art.ArtError: an unknown style, or npm or resvg-py is missing and the cache does not help.
        """
        drawings: dict[tuple[int, str], list[np.ndarray]] = {}
        for style in styles:
            by_icon = art.load_style(style, size, folder)
            for index, noun in enumerate(all_nouns()):
                drawings[index, style] = [by_icon[icon] for icon in noun.icons if icon in by_icon]
        return cls(drawings)

    def drawings(self, noun: int, style: str) -> tuple[Mips, ...]:
        """Return every drawing of a noun in a style, () if there is none."""
        return self._mips.get((noun, style), ())

    def draw(self, noun: int, rng: np.random.Generator) -> Mips:
        """Choose a style that has the noun, then one of its drawings."""
        styles = self._styles_of[noun]
        choices = self._mips[noun, styles[int(rng.integers(len(styles)))]]
        return choices[int(rng.integers(len(choices)))]
