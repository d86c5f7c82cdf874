"""Scenes: sprites on a texture, with exact masks and a caption.

maker = SceneMaker(64, styles=TRAIN_STYLES, seed=1)
scene = maker.scene()      # scene.image, scene.objects, scene.instances, scene.caption
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from densevl.errors import DensevlError

from .augment import restyle, spoil, warp
from .captions import scene_caption
from .nouns import all_nouns, is_held_out
from .sprites import SpriteBook, sprite_size
from .textures import UNNAMED, TextureBook, all_textures, texture_of

SIZES = {1: (0.4, 0.7), 2: (0.4, 0.65), 3: (0.4, 0.58)}
"""Longest side of an object as a share of the scene's, by the number of objects it shares the scene with."""
OVERLAP_CAP = 0.2
"""Two boxes share at most this part of the smaller one."""
VISIBLE = 0.6
"""Every object shows at least this part of its mask."""
AGAIN = 0.1
"""Chance that an object repeats a noun of the scene."""


@dataclass(frozen=True)
class Scene:
    """A rendered image with its full ground truth.

    Attributes:
        image: uint8 (S, S, 3), RGB.
        objects: int16 (S, S), noun index of each pixel, -1 for background.
        instances: int16 (S, S), instance number from 0, -1 for background.
        nouns: noun index of each instance; the same noun may occur twice.
        texture: texture index of the background, `textures.UNNAMED` for one without a name.
        caption: one sentence that names the objects and the background.
        defect: bool (S, S), damaged pixels of a bare surface (`surfaces`), None for scenes.
    """

    image: np.ndarray
    objects: np.ndarray
    instances: np.ndarray
    nouns: tuple[int, ...]
    texture: int
    caption: str
    defect: np.ndarray | None = None


def place(rng: np.random.Generator, side: int, boxes: Sequence[tuple[int, int]]) -> np.ndarray | None:
    """Place boxes (height, width) in a square one after the other, none over more than `OVERLAP_CAP` of another.

    Returns:
        int (n, 2), top and left of each box, or None when a box found no place in 40 tries.
    """
    size = np.array(boxes).reshape(-1, 2)
    corner = np.zeros_like(size)
    for i, box in enumerate(size):
        tries = rng.integers(0, side - box + 1, (40, 2))
        low = np.maximum(tries[:, None], corner[None, :i])
        high = np.minimum((tries + box)[:, None], (corner + size)[None, :i])
        shared = np.clip(high - low, 0, None).prod(2)
        fits = (shared <= OVERLAP_CAP * np.minimum(size[:i].prod(1), box.prod())).all(1)
        if not fits.any():
            return None
        corner[i] = tries[fits.argmax()]
    return corner


class SceneMaker:
    """Makes scene after scene; everything follows from the seed.

    Args:
        size: side of a scene in pixels; objects take 0.4 to 0.7 of it.
        styles: names from `art.STYLES`, or a `SpriteBook` (how tests bring their own drawings).
        nouns: indices into `all_nouns()` to draw from; the default is all that the styles hold.
        seed: fixes textures and scenes.
        held_out: False never shows a held-out pair (training), True shows at least one in every scene with an object,
            None takes any pair.
        objects: least and most objects; 0 gives bare textures.
        augment: change colours, shading, outlines and shape strongly (training) or only turn a little and mirror.
        unnamed: share of the scenes that stand on a texture without a name; with it, `held_out` is not True.
        tiles: 2 gives scenes of twice the side with four times as many objects of the same size in pixels.

    Attributes:
        rng: the generator; save `rng.bit_generator.state` to resume.
    """

    def __init__(
        self,
        size: int,
        *,
        styles: Sequence[str] | SpriteBook,
        nouns: Sequence[int] | None = None,
        seed: int,
        held_out: bool | None = False,
        objects: tuple[int, int] = (1, 3),
        augment: bool = True,
        unnamed: float = 0.0,
        tiles: int = 1,
    ) -> None:
        self.unnamed = unnamed
        self.size, self.side, self.tiles = size, size * tiles, tiles
        self.held_out, self.counts, self.augment = held_out, objects, augment
        self.book = styles if isinstance(styles, SpriteBook) else SpriteBook.load(styles, sprite_size(size))
        self.textures = TextureBook(size, seed, side=size * (tiles + 1))
        self.rng = np.random.default_rng(seed)
        self.nouns = np.array(self.book.nouns if nouns is None else nouns)
        names = [all_nouns()[n].name for n in self.nouns]
        self._pairs = np.array([[is_held_out(a, b) for b in names] for a in names]) & ~np.eye(len(names), dtype=bool)
        self._on = np.array([[is_held_out(a, t.name) for t in all_textures()] for a in names])

    def scene(self) -> Scene:
        """Make the next scene."""
        counts = self.rng.integers(self.counts[0], self.counts[1] + 1, self.tiles**2)
        return self.of(*self.choose(int(counts.sum())))

    def single(self, noun: int) -> Scene:
        """Make a scene with one object of a given noun (index into `all_nouns()`) on any texture."""
        position = int(np.flatnonzero(self.nouns == noun)[0])
        allowed = np.ones(len(all_textures()), bool) if self.held_out is None else self._on[position] == self.held_out
        allowed = allowed if allowed.any() else ~allowed
        return self.of([noun], int(self.rng.choice(np.flatnonzero(allowed))))

    def choose(self, count: int) -> tuple[list[int], int]:
        """Choose `count` nouns and a texture that respect `held_out`; nouns repeat when no others go together."""
        texture = int(self.rng.integers(len(all_textures())))
        if self.unnamed and self.rng.random() < self.unnamed:
            texture = UNNAMED
        chosen: list[int] = []
        if self.held_out and count:
            chosen, texture = self._held_out_pair(count, texture)
        while len(chosen) < count:
            if chosen and (len(chosen) >= len(self.nouns) or self.rng.random() < AGAIN):
                chosen.append(chosen[int(self.rng.integers(len(chosen)))])
                continue
            free = np.ones(len(self.nouns), bool)
            if self.held_out is False and texture != UNNAMED:
                free &= ~self._on[:, texture]
            if self.held_out is False and chosen:
                free &= ~self._pairs[chosen].any(0)
            free[chosen] = False
            options = np.flatnonzero(free)
            if len(options):
                chosen.append(int(self.rng.choice(options)))
            elif chosen:
                chosen.append(chosen[int(self.rng.integers(len(chosen)))])
            else:  # every noun is held out on this texture
                texture = int(self.rng.integers(len(all_textures())))
        return [int(self.nouns[i]) for i in chosen], texture

    def _held_out_pair(self, count: int, texture: int) -> tuple[list[int], int]:
        """Choose the pair that a held-out scene must show: positions in `self.nouns`, and the texture."""
        pairs = np.argwhere(np.triu(self._pairs)) if count > 1 else np.empty((0, 2), int)
        grounds = np.argwhere(self._on)
        if len(pairs) and (not len(grounds) or self.rng.random() < 0.5):
            return self.rng.permutation(self.rng.choice(pairs)).tolist(), texture
        if not len(grounds):
            raise DensevlError("no pair of these nouns and textures is held out: choose more nouns or held_out=None")
        noun, ground = self.rng.choice(grounds)
        return [int(noun)], int(ground)

    def of(self, nouns: Sequence[int], texture: int) -> Scene:
        """Draw given nouns on a given texture."""
        low, high = SIZES[min(3, max(1, -(-len(nouns) // self.tiles**2)))]
        for attempt in range(64):
            shrink = 0.95 ** (attempt // 4)
            scene = self._draw(nouns, texture, low * shrink, high * shrink)
            if scene is not None:
                return scene
        names = ", ".join(all_nouns()[n].name for n in nouns)
        raise DensevlError(f"{names}: these drawings are empty or too large for a scene of {self.side} pixels")

    def _draw(self, nouns: Sequence[int], texture: int, low: float, high: float) -> Scene | None:
        """Draw once; None when the objects found no place or one of them is hidden."""
        rng, side = self.rng, self.side
        tiles = []
        for noun in nouns:
            tile = warp(self.book.draw(noun, rng), rng, self.size * rng.uniform(low, high), self.augment)
            tiles.append(restyle(tile, rng) if self.augment else tile)
        boxes = [tile.shape[:2] for tile in tiles]
        corners = next((found for _ in range(3) if (found := place(rng, side, boxes)) is not None), None)
        if corners is None:
            return None
        image = self.textures.crop(texture, rng, side, 1.0 if self.augment else 0.4)
        objects = np.full((side, side), -1, np.int16)
        instances = objects.copy()
        whole = []
        for number, (noun, tile, (y, x)) in enumerate(zip(nouns, tiles, corners.tolist(), strict=True)):
            area = slice(y, y + tile.shape[0]), slice(x, x + tile.shape[1])
            alpha = tile[..., 3:]
            image[area] = (tile[..., :3] + image[area] * (1 - alpha / 255) + 0.5).astype(np.uint8)
            mask = alpha[..., 0] > 127.5
            objects[area][mask] = noun
            instances[area][mask] = number
            whole.append(np.count_nonzero(mask))
        shown = np.bincount(instances.ravel() + 1, minlength=len(nouns) + 1)[1:]
        if (shown < np.maximum(1, VISIBLE * np.array(whole))).any():
            return None
        image = spoil(image, rng) if self.augment else image
        caption = scene_caption(nouns, texture_of(texture), rng)
        return Scene(image, objects, instances, tuple(nouns), texture, caption)
