"""Corruptions of photos, in the spirit of ImageNet-C (Hendrycks & Dietterich, 2019), without other packages.

Each takes uint8 RGB (H, W, 3), a severity of 1 to 5 and a random generator, and returns the same shape. The strengths
are densevl's own, so figures compare methods here and not with tables elsewhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from densevl.errors import EvaluationError, suggest

Picture = npt.NDArray[np.uint8]
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(rgb: Picture, name: str, severity: int, seed: int = 0) -> Picture:
    """Corrupt a photo; the same seed gives the same picture.

    Raises:
        EvaluationError: the corruption or severity is unknown.
    """
    if name not in CORRUPTIONS:
        raise EvaluationError(f"no corruption '{name}'{suggest(name, CORRUPTIONS)}; there are {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise EvaluationError(f"severity {severity} is none of {SEVERITIES[0]} to {SEVERITIES[-1]}")
    return CORRUPTIONS[name](rgb, severity - 1, np.random.default_rng(seed))


def _clip(values: npt.NDArray[np.floating[Any]]) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _noise(rgb: Picture, step: int, rng: np.random.Generator) -> Picture:
    return _clip(rgb + (8, 16, 26, 40, 60)[step] * rng.standard_normal(rgb.shape))


def _blur(rgb: Picture, step: int, rng: np.random.Generator) -> Picture:
    """Gaussian blur, with a width relative to the image's diagonal."""
    sigma = (0.003, 0.006, 0.01, 0.016, 0.024)[step] * float(np.hypot(*rgb.shape[:2]))
    reach = max(1, int(3 * sigma + 0.5))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    values = rgb.astype(np.float64)
    for axis in (0, 1):
        margin = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        padded, length = np.pad(values, margin, mode="edge"), values.shape[axis]
        values = sum(t * np.take(padded, range(i, i + length), axis) for i, t in enumerate(taps))
    return _clip(values)


def _contrast(rgb: Picture, step: int, rng: np.random.Generator) -> Picture:
    mean = rgb.mean()
    return _clip(mean + (rgb - mean) * (0.75, 0.55, 0.4, 0.25, 0.15)[step])


def _dark(rgb: Picture, step: int, rng: np.random.Generator) -> Picture:
    return _clip(rgb * (0.75, 0.55, 0.4, 0.28, 0.18)[step])


def _jpeg(rgb: Picture, step: int, rng: np.random.Generator) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=(40, 25, 15, 9, 5)[step])
    return np.array(Image.open(buffer).convert("RGB"))


def _pixelate(rgb: Picture, step: int, rng: np.random.Generator) -> Picture:
    height, width = rgb.shape[:2]
    share = (0.6, 0.45, 0.32, 0.23, 0.16)[step]
    small = Image.fromarray(rgb).resize((max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX)
    return np.array(small.resize((width, height), Image.Resampling.NEAREST))


CORRUPTIONS: dict[str, Callable[[Picture, int, np.random.Generator], Picture]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "dark": _dark,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
}
