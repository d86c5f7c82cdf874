"""Sources of training images: the renderer's scenes and bare surfaces, endless and reseedable."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from tools.render.art import TRAIN_STYLES
from tools.render.nouns import BENCHMARK_NOUNS
from tools.render.scenes import Scene, SceneMaker
from tools.render.surfaces import SurfaceMaker

Sources = Callable[[int, int, list[int]], tuple[Callable[[], Scene], Callable[[], Scene] | None]]
"""From image side, number of nouns and a seed to the makers of scenes and of bare surfaces (None: no surfaces)."""

BENCHMARK_SHARE = 0.75
"""Share of the scenes that show only nouns of the benchmark; the others draw from all trained nouns."""
UNNAMED_SCENES, UNNAMED_SURFACES = 0.6, 0.4
"""Shares that stand on, or are, a texture without a name."""


class Rendered:
    """`Sources` from the training styles; textures are kept between reseedings, as they take seconds to make."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int], tuple[SceneMaker, SceneMaker, SurfaceMaker]] = {}

    def __call__(
        self, size: int, nouns: int, seed: list[int]
    ) -> tuple[Callable[[], Scene], Callable[[], Scene] | None]:
        """Return the makers for an image side, their random choices started from `seed`."""
        if (size, nouns) not in self._made:
            self._made[size, nouns] = self._make(size, nouns, int(np.random.default_rng(seed).integers(2**17)))
        few, many, surfaces = self._made[size, nouns]
        rng = np.random.default_rng(seed)
        few.rng, many.rng, surfaces.rng = rng.spawn(3)
        return lambda: (few if rng.random() < BENCHMARK_SHARE else many).scene(), surfaces.surface

    @staticmethod
    def _make(size: int, nouns: int, seed: int) -> tuple[SceneMaker, SceneMaker, SurfaceMaker]:
        cv2.setNumThreads(1)
        some, share = range(min(nouns, BENCHMARK_NOUNS)), UNNAMED_SCENES
        few = SceneMaker(size, styles=TRAIN_STYLES, nouns=some, seed=seed, unnamed=share)
        many = SceneMaker(size, styles=few.book, nouns=range(nouns), seed=seed, unnamed=share)
        surfaces = SurfaceMaker(size, seed=seed, unnamed=UNNAMED_SURFACES, augment=True)
        many.textures = surfaces.textures = few.textures
        return few, many, surfaces


rendered = Rendered()
