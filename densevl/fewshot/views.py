"""Other looks at a picture, by which few-shot head "prompt" learns: crops, half of them mirrored."""

from __future__ import annotations

import math

import numpy as np

LEAST, NARROWEST = 0.5, 3 / 4  # of the area; and width by height, beside the picture's own


def view(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crop of half the area or more, by chance mirrored.

    Args:
        rgb: uint8 (H, W, 3).
    """
    height, width = rgb.shape[:2]
    area, lean = rng.uniform(LEAST, 1), math.exp(rng.uniform(math.log(NARROWEST), -math.log(NARROWEST)))
    tall = max(1, min(height, round(height * math.sqrt(area / lean))))
    wide = max(1, min(width, round(width * math.sqrt(area * lean))))
    top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
    found = rgb[top : top + tall, left : left + wide]
    return np.ascontiguousarray(found[:, ::-1] if rng.random() < 0.5 else found)
