"""Procedural backgrounds: each has a name, phrases for captions, and a generator of any number of seeded variants."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from . import grounds, materials


@dataclass(frozen=True)
class Texture:
    """A background.

    Attributes:
        name: what a label says: "brick wall".
        places: what a caption says after the objects: "in front of a brick wall".
        surface: what a caption of the bare surface says: "wooden surface".
        make: the generator of `materials`.
        turns: whether a quarter turn still looks like the same thing.
    """

    name: str
    places: tuple[str, ...]
    surface: str
    make: materials.Maker
    turns: bool = False


@cache
def all_textures() -> tuple[Texture, ...]:
    """Return the textures; the index into this tuple is the texture index everywhere."""
    m = materials
    return (
        Texture("sky", ("in the sky", "against a blue sky"), "blue sky", m.sky),
        Texture("grass", ("on grass", "on a lawn"), "grass", m.grass),
        Texture("sand", ("on sand", "on a sandy beach"), "sand", m.sand, turns=True),
        Texture("wood", ("on wooden planks", "on a wooden floor"), "wooden surface", m.wood, turns=True),
        Texture("brick wall", ("in front of a brick wall", "on a brick wall"), "brick wall", m.brick),
        Texture("water", ("in the water", "on water"), "water", m.water),
        Texture("snow", ("in the snow", "on snow"), "snow", m.snow, turns=True),
        Texture("cobblestone", ("on cobblestone", "on a cobblestone street"), "cobblestone", m.cobblestone, turns=True),
        Texture("night sky", ("in the night sky", "under the stars"), "night sky", m.night),
        Texture(
            "checkered cloth",
            ("on a checkered cloth", "on a checkered tablecloth"),
            "checkered cloth",
            m.cloth,
            turns=True,
        ),
        Texture("soil", ("on soil", "on bare soil"), "soil", m.soil, turns=True),
        Texture("metal", ("on a metal plate", "on brushed metal"), "metal surface", m.metal, turns=True),
        Texture("tiles", ("on tiles", "on a tiled floor"), "tiled surface", m.tiles, turns=True),
        Texture("fallen leaves", ("on fallen leaves", "on autumn leaves"), "fallen leaves", m.leaves, turns=True),
        Texture("knitted wool", ("on knitted wool", "on a wool blanket"), "knitted wool", m.wool),
    )


UNNAMED = len(all_textures())
"""The texture index of all backgrounds without a name."""
FREE_VARIANTS = 1000
"""How many of them a `TextureBook` holds."""


def texture_of(index: int) -> Texture:
    """Return a texture by its index; `UNNAMED` has no name and no place, and its surface is "surface"."""
    return Texture("", ("",), "surface", grounds.free, turns=True) if index == UNNAMED else all_textures()[index]


def make_variant(texture: int, seed: int, side: int, unit: float, free: materials.Maker = grounds.free) -> np.ndarray:
    """Return one variant of a texture: uint8 (side, side, 3) RGB.

    Args:
        texture: index into `all_textures()`, or `UNNAMED`.
        seed: any number; the same seed gives the same pixels.
        side: pixels.
        unit: scale of the pattern, 1 for scenes of 64 px, 1.5 for 96.
        free: the generator of `UNNAMED`.
    """
    rng = np.random.default_rng([seed, texture])
    make = free if texture == UNNAMED else all_textures()[texture].make
    values = make(rng, side, unit * rng.uniform(0.85, 1.25))
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


class TextureBook:
    """Variants of every texture, made when first asked for, from which random crops are taken.

    Args:
        size: side of an ordinary scene in pixels; fixes the scale of the patterns.
        seed: all variants follow from it.
        side: pixels of a variant; the default is twice the size.
        variants: how many per texture; `FREE_VARIANTS` of `UNNAMED`.
        free: the generator of `UNNAMED`.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        *,
        side: int | None = None,
        variants: int = 16,
        free: materials.Maker = grounds.free,
    ) -> None:
        self.size, self.seed, self.side, self.variants, self.free = size, seed, side or 2 * size, variants, free
        self._made: dict[tuple[int, int], np.ndarray] = {}

    def variant(self, texture: int, number: int) -> np.ndarray:
        """Return variant `number` of a texture: uint8 (side, side, 3), not to be written to."""
        key = (texture, number)
        if key not in self._made:
            self._made[key] = make_variant(texture, self.seed * 1009 + number, self.side, self.size / 64, self.free)
        return self._made[key]

    def crop(self, texture: int, rng: np.random.Generator, side: int, jitter: float = 0.0) -> np.ndarray:
        """Return a random crop: a new uint8 (side, side, 3).

        It is mirrored or turned where that still looks right; if there is only one variant it never is, as on a
        production line.

        Args:
            texture: index.
            rng: chooses variant, place, flip and light.
            side: pixels of the crop, at most the side of the variants.
            jitter: strength of the change of light and tint, 0 for none, 1 for up to a third.
        """
        count = FREE_VARIANTS if texture == UNNAMED else self.variants
        whole = self.variant(texture, int(rng.integers(count)))
        y, x = rng.integers(0, self.side - side + 1, 2)
        cut = whole[y : y + side, x : x + side]
        mirror, turn = (rng.random(2) < 0.5) & (self.variants > 1)
        if mirror:
            cut = cut[:, ::-1]
        if turn and texture_of(texture).turns:
            cut = cut.transpose(1, 0, 2)
        cut = np.ascontiguousarray(cut)
        return relight(cut, rng, jitter) if jitter else cut.copy()


def relight(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Change brightness, contrast and tint of a uint8 (H, W, 3) image by up to a third times `strength`."""
    gain = np.exp(rng.uniform(-0.3, 0.3) * strength) * np.exp(rng.uniform(-0.1, 0.1, 3) * strength)
    offset = rng.uniform(-0.1, 0.1) * strength * 255
    table = np.arange(256)[:, None] * gain + offset
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8)[None])
