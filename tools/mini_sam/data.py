"""From rendered scenes to training batches: pixels, and for each prompt its region, a point in it and a box around it.

Shape letters: B images, P prompts, S pixels, L low-resolution mask.
A region is an object; sometimes all objects that touch it, or the background.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from tools.mini.data import MIRRORED, POOL, normalized
from tools.render.art import TRAIN_STYLES
from tools.render.scenes import SceneMaker

Source = Callable[[np.random.Generator], Any]
"""Makes the next scene; all its random choices come from the generator."""
Sources = Callable[[int, int], Source]
"""From image side and a seed to a source."""

GROUND = 0.2
"""Share of prompts that point at the background."""
GROUP = 0.15
"""Share of prompts on an object that mean its group, where it has one."""
UNNAMED = 0.5
"""Share of the scenes on a texture without a name."""
JITTER = 0.08
"""Deviation of the sides of a box, as a share of its size."""


@dataclass(frozen=True)
class Batch:
    """The data of one step; points and boxes are x, y in pixels.

    Attributes:
        pixels: (B, 3, S, S) float32, normalised.
        image: (P,) int64, the image of each prompt.
        truth: (P, L, L) float32, share of each low-resolution pixel that the region covers.
        points: (P, 1, 2) float32, inside the region.
        boxes: (P, 4) float32, around the region, not exact.
    """

    pixels: torch.Tensor
    image: torch.Tensor
    truth: torch.Tensor
    points: torch.Tensor
    boxes: torch.Tensor


def rendered(size: int, seed: int) -> Source:
    """`Sources` from the training styles, one to three objects, strong changes of style; `UNNAMED` of the grounds."""
    cv2.setNumThreads(1)
    maker = SceneMaker(size, styles=TRAIN_STYLES, seed=seed, unnamed=UNNAMED)

    def source(rng: np.random.Generator) -> Any:
        maker.rng = rng
        return maker.scene()

    return source


def region(instances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose what a prompt means: bool (S, S), never empty, from instances (S, S), -1 for background."""
    count = int(instances.max()) + 1
    if (not count or rng.random() < GROUND) and (instances < 0).any():
        return instances < 0
    chosen = int(rng.integers(count))
    mask = instances == chosen
    if rng.random() < GROUP:
        _, parts = cv2.connectedComponents((instances >= 0).astype(np.uint8), connectivity=8)
        mask = np.isin(parts, np.unique(parts[mask]))
    return mask


def point_in(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """Choose a pixel of a mask: x, y."""
    inside = np.flatnonzero(mask)
    y, x = divmod(int(inside[rng.integers(len(inside))]), mask.shape[1])
    return x, y


def box_around(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the box of a mask with its sides moved a little: float (4,), left, top, right, bottom."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]], float)
    sides = np.tile([box[2] - box[0], box[3] - box[1]], 2)
    return np.clip(box + rng.normal(0, JITTER, 4) * sides, 0, len(mask) - 1)


class Stream:
    """Endless batches, each image new or a recent one mirrored; prompts are always new.

    Args:
        source: of the scenes.
        rng: of all random choices.
        images: of a batch.
        prompts: for each image.
        low: L, which divides the image side.
    """

    def __init__(self, source: Source, rng: np.random.Generator, images: int, prompts: int, low: int) -> None:
        self._source, self._rng = source, rng
        self._images, self._prompts, self._low = images, prompts, low
        self._pool: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=POOL)

    def batch(self) -> Batch:
        """Make the next batch."""
        rng, pairs = self._rng, [self._image() for _ in range(self._images)]
        masks = np.stack([region(instances, rng) for _, instances in pairs for _ in range(self._prompts)])
        return Batch(
            pixels=normalized(np.stack([image for image, _ in pairs])),
            image=torch.arange(self._images).repeat_interleave(self._prompts),
            truth=F.adaptive_avg_pool2d(torch.from_numpy(masks).float(), self._low),
            points=torch.tensor([[point_in(mask, rng)] for mask in masks], dtype=torch.float32),
            boxes=torch.from_numpy(np.stack([box_around(mask, rng) for mask in masks])).float(),
        )

    def _image(self) -> tuple[np.ndarray, np.ndarray]:
        if len(self._pool) > 4 * self._images and self._rng.random() < MIRRORED:
            image, instances = self._pool[int(self._rng.integers(len(self._pool)))]
            return image[:, ::-1], instances[:, ::-1]
        scene = self._source(self._rng)
        self._pool.append((scene.image, scene.instances))
        return scene.image, scene.instances
