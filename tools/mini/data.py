"""From rendered scenes to training batches: pixels, the share of every class in every patch, captions, defects.

Shape letters: B batch, N patches, C classes of the bank (nouns, then textures), c those and one more for a background
without a name, h patch rows and columns, S surfaces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from tools.mini.model import PATCH

TEXTURE_WEIGHT = 0.4  # of the background among the true texts of an image
POOL = 1500
MIRRORED = 0.45  # share of a batch that is a recent image turned left to right; rendering is a fifth of a step
SURFACES = 0.11
SEEN = 0.02  # a class counts as present above this share of the image's patches


@dataclass(frozen=True)
class Sample:
    """One image: uint8 (S, S, 3); class shares float32 (h, h, c); caption; damage (h, h) or None if not a surface."""

    image: np.ndarray
    shares: np.ndarray
    caption: str
    texture: int
    damage: np.ndarray | None

    def mirrored(self) -> Sample:
        """Mirror an image left to right."""
        damage = None if self.damage is None else self.damage[:, ::-1]
        return Sample(self.image[:, ::-1], self.shares[:, ::-1], self.caption, self.texture, damage)


@dataclass(frozen=True)
class Batch:
    """The data of one step.

    Attributes:
        pixels: (B, 3, S, S) float32, normalised.
        shares: (B, N, c) float32, rows sum to 1.
        truth: (B, C) float32, weight of each class that is present.
        absent: (B, C) bool, the nouns that a scene on a named texture does not show. Which nouns stand on which of
            the few textures is chance, so the losses of objects leave these out.
        captions: B sentences.
        surfaces: (S,) indices of the bare surfaces; textures: their texture indices; damage: (S, N) 0 to 1.
    """

    pixels: torch.Tensor
    shares: torch.Tensor
    truth: torch.Tensor
    absent: torch.Tensor
    captions: list[str]
    surfaces: torch.Tensor
    textures: list[int]
    damage: torch.Tensor


def to_sample(scene: Any, nouns: int, classes: int, *, surface: bool = False) -> Sample:
    """Reduce a `tools.render` scene to a `Sample`; `classes` is C."""
    side = len(scene.image) // PATCH
    index = np.where(scene.objects >= 0, scene.objects, nouns + scene.texture).astype(np.int64)
    cell = np.arange(len(scene.image)) // PATCH
    flat = (cell[:, None] * side + cell[None]) * (classes + 1) + index  # `UNNAMED` comes after the last texture
    counts = np.bincount(flat.ravel(), minlength=side * side * (classes + 1)).reshape(side, side, -1)
    damage = None
    if surface:
        mask = np.zeros(index.shape, bool) if scene.defect is None else scene.defect
        damage = mask.reshape(side, PATCH, side, PATCH).mean((1, 3), dtype=np.float32)
    return Sample(scene.image, (counts / PATCH**2).astype(np.float32), scene.caption, scene.texture, damage)


class Stream:
    """Endless batches, each image new or a recent one mirrored.

    Args:
        scene, surface: make the next scene and the next bare surface (None for no surfaces).
        nouns, classes: of the prompt bank.
        seed: of the mixing; the makers have their own.
    """

    def __init__(
        self, scene: Callable[[], Any], surface: Callable[[], Any] | None, nouns: int, classes: int, seed: list[int]
    ) -> None:
        self._scene, self._surface = scene, surface
        self._nouns, self._classes = nouns, classes
        self._rng = np.random.default_rng(seed)
        self._pool: deque[Sample] = deque(maxlen=POOL)

    def batch(self, size: int) -> Batch:
        """Make the next batch of `size` images."""
        reused = round(size * MIRRORED) if len(self._pool) >= 4 * size else 0
        picks = self._rng.choice(len(self._pool), reused, replace=False) if reused else []
        samples = [self._pool[int(i)].mirrored() for i in picks]
        fresh = [self._fresh() for _ in range(size - reused)]
        self._pool.extend(fresh)
        return collate(samples + fresh, self._nouns)

    def _fresh(self) -> Sample:
        if self._surface is not None and self._rng.random() < SURFACES:
            return to_sample(self._surface(), self._nouns, self._classes, surface=True)
        return to_sample(self._scene(), self._nouns, self._classes)


def normalized(images: np.ndarray) -> torch.Tensor:
    """uint8 (B, S, S, 3) RGB to float32 (B, 3, S, S) with open_clip's default mean and deviation."""
    mean = torch.tensor(OPENAI_DATASET_MEAN) * 255
    std = torch.tensor(OPENAI_DATASET_STD) * 255
    return ((torch.from_numpy(images).float() - mean) / std).permute(0, 3, 1, 2).contiguous()


def collate(samples: list[Sample], nouns: int) -> Batch:
    """Stack samples; the first `nouns` classes are objects."""
    shares = torch.from_numpy(np.stack([s.shares for s in samples])).flatten(1, 2)
    means = shares.mean(dim=1)
    weights = torch.full((shares.shape[-1] - 1,), TEXTURE_WEIGHT)
    weights[:nouns] = 1.0
    named = torch.tensor([s.damage is None for s in samples]) & (means[:, -1] == 0)
    surfaces = [i for i, s in enumerate(samples) if s.damage is not None]
    damage = [torch.from_numpy(np.ascontiguousarray(samples[i].damage)).flatten() for i in surfaces]
    return Batch(
        pixels=normalized(np.stack([s.image for s in samples])),
        shares=shares,
        truth=weights * (means[:, :-1] > SEEN),
        absent=named[:, None] & (weights == 1) & (means[:, :-1] == 0),
        captions=[s.caption for s in samples],
        surfaces=torch.tensor(surfaces, dtype=torch.long),
        textures=[samples[i].texture for i in surfaces],
        damage=torch.stack(damage) if damage else torch.zeros(0, shares.shape[1]),
    )
