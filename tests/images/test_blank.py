"""What is taken for a picture of nothing, and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from densevl.images.blank import is_blank

PHOTOS = sorted((Path(__file__).parents[2] / "demo" / "images").glob("*.jpg"))
FADE = np.linspace(0, 255, 400).astype(np.uint8)


def _blurred() -> np.ndarray:
    grain = Image.fromarray(np.random.randint(0, 256, (300, 400, 3)).astype(np.uint8))
    return np.asarray(grain.filter(ImageFilter.GaussianBlur(20)))


@pytest.mark.parametrize(
    ("what", "rgb"),
    [
        ("one pixel", np.zeros((1, 1, 3), np.uint8)),
        ("a line", np.full((1, 900, 3), 200, np.uint8)),
        ("white", np.full((300, 400, 3), 255, np.uint8)),
        ("a fade", np.tile(FADE[None, :, None], (300, 1, 3))),
        ("a lens cap", np.random.normal(8, 4, (300, 400, 3)).clip(0, 255).astype(np.uint8)),
        ("out of focus", _blurred()),
    ],
)
def test_nothing_is_there(what, rgb) -> None:
    assert is_blank(rgb), what


def test_something_is_there() -> None:
    bird = np.full((300, 400, 3), (90, 140, 220), np.uint8)
    bird[150:156, 200:209] = 30  # far away in the sky
    assert not is_blank(bird)
    assert PHOTOS
    for path in PHOTOS:
        photo = np.asarray(Image.open(path).convert("RGB"))
        assert not is_blank(photo), path.name
        assert not is_blank(np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(4)))), path.name
        assert not is_blank((photo * 0.3).astype(np.uint8)), path.name


@pytest.mark.parametrize("channels", [1, 3])
def test_white_noise_shows_nothing_at_any_strength(channels) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, channels), np.uint8)
    assert is_blank(np.broadcast_to(noise, (300, 400, 3)).copy())
