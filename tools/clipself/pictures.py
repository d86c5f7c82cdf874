"""Unlabelled pictures of a folder as training batches: which picture, which square of it and which regions.

Everything follows from the seed and the step number, so a resumed run continues with the same sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from densevl import digest
from densevl.errors import ImageError
from densevl.regions.operators.crop import resized
from tools.arguments import read_or_skip

ORDER, LOOK = 0, 1  # random streams: the order of an epoch, and the squares and regions of a picture


class Batch(NamedTuple):
    """Normalised pictures (B, 3, S, S), crops (R, 3, T, T) in their order, and B times boxes (r, 4) in 0..1."""

    pictures: torch.Tensor
    crops: torch.Tensor
    boxes: list[torch.Tensor]


class Pictures:
    """Yield batches of a list of files.

    Args:
        files: the pictures. normalize: uint8 RGB to (3, H, W), such as `Backbone.normalize`.
        side: S, of the student's input. crop_side: T, of the teacher's.
        batch: pictures per step. regions: maximum per picture. grid: a picture is cut into 1..grid rows and as
            many columns. seed: everything follows from it.
    """

    def __init__(
        self,
        files: Sequence[Path],
        normalize: Callable[[np.ndarray], torch.Tensor],
        *,
        side: int,
        crop_side: int,
        batch: int,
        regions: int,
        grid: int,
        seed: int,
    ) -> None:
        self.files, self.normalize = list(files), normalize
        self.side, self.crop_side = side, crop_side
        self.size, self.regions, self.grid, self.seed = batch, regions, grid, seed
        self._order = lru_cache(2)(lambda epoch: np.random.default_rng([seed, ORDER, epoch]).permutation(len(files)))

    @property
    def digest(self) -> str:
        """Hash the file names with SHA-256: a resumed run must have the same pictures."""
        return digest.of_text("\n".join(path.name for path in self.files))

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0.

        Raises:
            ImageError: If none of the pictures can be read.
        """
        pictures, crops, boxes = [], [], []
        for position in range(step * self.size, (step + 1) * self.size):
            rng = np.random.default_rng([self.seed, LOOK, position])
            square = self._square(position, rng)
            cells = self._cells(rng)
            pictures.append(resized(square, self.side, False))
            crops += [resized(_cut(square, box), self.crop_side, False) for box in cells.tolist()]
            boxes.append(cells.to(square.device))
        return Batch(torch.stack(pictures), torch.stack(crops), boxes)

    def _square(self, position: int, rng: np.random.Generator) -> torch.Tensor:
        """Cut a random square (3, s, s) from a picture, as large as fits; pass over an unreadable one."""
        for further in range(len(self.files)):
            epoch, place = divmod(position + further, len(self.files))
            path = self.files[self._order(epoch)[place]]
            if (rgb := read_or_skip(path)) is None:
                continue
            side = min(rgb.shape[:2])
            y, x = (int(rng.integers(length - side + 1)) for length in rgb.shape[:2])
            return self.normalize(rgb[y : y + side, x : x + side])
        raise ImageError(f"none of the {len(self.files)} pictures can be read; the last was {path}")

    def _cells(self, rng: np.random.Generator) -> torch.Tensor:
        """Choose some cells of a random grid: boxes (r, 4) x0, y0, x1, y1 in 0..1."""
        rows, cols = (int(n) for n in rng.integers(1, self.grid + 1, 2))
        y, x = np.divmod(rng.permutation(rows * cols)[: self.regions], cols)
        return torch.from_numpy(np.stack([x / cols, y / rows, (x + 1) / cols, (y + 1) / rows], 1)).float()


def _cut(square_3SS: torch.Tensor, box: Sequence[float]) -> torch.Tensor:
    """Return the pixels that a box in 0..1 touches."""
    side = square_3SS.shape[-1]
    x0, y0 = (int(np.floor(low * side + 1e-4)) for low in box[:2])
    x1, y1 = (int(np.ceil(high * side - 1e-4)) for high in box[2:])
    return square_3SS[:, y0:y1, x0:x1]
