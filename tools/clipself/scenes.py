"""Write a folder of rendered scenes without labels to train on: training styles, and no seed of the benchmark."""

from __future__ import annotations

from pathlib import Path

import cv2
from PIL import Image

from densevl.errors import OutputError
from densevl.files import atomic_write
from densevl.images import encode_png
from tools.arguments import new_folder
from tools.render.art import TRAIN_STYLES
from tools.render.benchmark import SEED
from tools.render.scenes import SceneMaker


def write(out: Path, count: int, size: int, seed: int) -> None:
    """Write `count` scenes of `size` pixels as PNG files.

    Raises:
        OutputError: If the seed belongs to the benchmark, or the folder is not empty or cannot be written.
    """
    new_folder(out)
    if seed >= SEED:
        raise OutputError(f"seed {seed} belongs to the benchmark; take one below {SEED}")
    cv2.setNumThreads(1)
    maker = SceneMaker(size, styles=TRAIN_STYLES, seed=seed)
    for number in range(count):
        atomic_write(out / f"{number:05d}.png", encode_png(Image.fromarray(maker.scene().image)))
