"""Real pictures from Python packages, as classes by example, for `tools.bench_fewshot`.

digits: handwritten digits of scikit-learn (UCI, 8 x 8 pixels, enlarged). textures: squares of three photographs of
scikit-image (brick, grass, gravel), examples from the left half and tests from the right. textile: woven textile of
conformal-clip-data (Megahed et al., arXiv 2501.12596), sound or with a global defect; these are simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEXTURES = ("brick", "grass", "gravel")
SIZE, SQUARE, SEED = 96, 64, 7


@dataclass
class Single:
    """A picture of one class. Attributes: image: uint8 RGB. nouns: only the index of its class."""

    image: np.ndarray
    nouns: list[int]


Sets = tuple[list[str], list[Single], list[Single]]


def digits(most: int, tests: int) -> Sets:
    """Return names, examples and test pictures."""
    from sklearn.datasets import load_digits

    data = load_digits()
    sets: list[list[Single]] = [[], []]
    for number in range(10):
        own = data.images[data.target == number]
        for index, eight in enumerate(own[: most + tests]):
            grey = Image.fromarray((255 - eight * 255 / 16).astype(np.uint8))
            rgb = np.asarray(grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB"))
            sets[index >= most].append(Single(rgb, [number]))
    return [f"the digit {name}" for name in DIGITS], *sets


def textures(most: int, tests: int) -> Sets:
    """Return names, examples and test pictures."""
    from skimage import data

    draw, sets = np.random.default_rng(SEED), ([], [])
    for number, name in enumerate(TEXTURES):
        grey = getattr(data, name)()
        half = grey.shape[1] // 2
        for right, count in ((False, most), (True, tests)):
            for _ in range(count):
                y = int(draw.integers(grey.shape[0] - SQUARE))
                x = int(draw.integers(half - SQUARE)) + right * half
                square = Image.fromarray(grey[y : y + SQUARE, x : x + SQUARE]).resize((SIZE, SIZE)).convert("RGB")
                sets[right].append(Single(np.asarray(square), [number]))
    return list(TEXTURES), *sets


def textile(most: int, tests: int) -> Sets:
    """Return names, examples and test pictures."""
    from conformal_clip_data import textile_simulated_root

    sets: tuple[list[Single], list[Single]] = ([], [])
    for number, folder in enumerate(("nominal", "global")):
        for index, file in enumerate(sorted((textile_simulated_root() / folder).glob("*.jpg"))[: most + tests]):
            with Image.open(file) as opened:
                sets[index >= most].append(Single(np.asarray(opened.convert("RGB")), [number]))
    return ["sound woven textile", "defective woven textile"], *sets


REAL: Mapping[str, Callable[[int, int], Sets]] = {"digits": digits, "textures": textures, "textile": textile}
