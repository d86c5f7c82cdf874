"""Textures without a name, each with its own structure and colours, in endless variety: `free` is a `Maker`.

They keep a model from learning which nouns go with which of the few named textures. None is made by a generator of
`materials`, so a held-out pair of a noun and a named texture stays unseen.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import cv2
import numpy as np

from .materials import cells, grid, noise, per_cell

Structure = Callable[[np.random.Generator, int, float], np.ndarray]
"""Like a `Maker`, but one float32 (side, side) of about 0..1, before colours."""

SECOND = 0.5
"""Chance that a second structure is laid over the first."""
STEPS = 0.3
"""Chance that a few flat colours are used, without tones between them."""


def turned(rng: np.random.Generator, side: int, unit: float, warp: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates as `grid` gives them, turned by any angle and bent by smooth noise of up to about `warp` units."""
    y, x = grid(side, unit)
    angle, bend = rng.uniform(0, np.pi), rng.uniform(0, warp)
    cos, sin = np.cos(angle), np.sin(angle)
    return y * cos - x * sin + bend * noise(rng, side, 1.9), y * sin + x * cos + bend * noise(rng, side, 1.9)


def cloud(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Spectral noise, from grain to clouds, drawn out or not."""
    stretch = np.exp(rng.uniform(-2.5, 2.5)) if rng.random() < 0.5 else 1.0
    return 0.5 + 0.25 * noise(rng, side, rng.uniform(0.2, 2.2), stretch)


def stripes(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Waves in one direction, soft or sharp, straight or bent."""
    y, _ = turned(rng, side, unit, 3)
    wave = np.sin(y * 2 * np.pi / np.exp(rng.uniform(np.log(3), np.log(24))))
    return 0.5 + 0.5 * np.clip(wave * np.exp(rng.uniform(-0.3, 2)), -1, 1)


def lattice(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Boxes in rows, each of its own tone, with or without joints; every second row may be shifted."""
    y, x = turned(rng, side, unit, 1)
    tall, wide = np.exp(rng.uniform(np.log(4), np.log(20), 2))
    y, x = y / tall + 90, x / wide + 90
    x = x + (np.floor(y) % 2) * rng.choice([0, 0.5, rng.uniform(0, 1)])
    tone = per_cell(rng, np.floor(y), np.floor(x)) if rng.random() < 0.7 else (np.floor(y) + np.floor(x)) % 2
    edge = np.minimum(np.minimum(y % 1, 1 - y % 1) * tall, np.minimum(x % 1, 1 - x % 1) * wide)
    return np.where(edge < rng.choice([0, rng.uniform(0.3, 1.4)]), rng.random(), tone)


def stones(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Irregular cells by tone, by the distance from their borders, or both."""
    gap, tone = cells(rng, side, unit * np.exp(rng.uniform(np.log(3), np.log(22))), rng.uniform(0.3, 1))
    share, steep = rng.choice([0, 1, rng.random()]), rng.uniform(1.5, 8)
    return (1 - share) * tone + share * np.clip(gap * steep, 0, 1)


def spots(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Round dots in a turned grid, of one size or of many."""
    y, x = turned(rng, side, unit, 1.5)
    pitch = np.exp(rng.uniform(np.log(4), np.log(18)))
    y, x = y / pitch + 90, x / pitch + 90
    radius = rng.uniform(0.15, 0.45) * (per_cell(rng, np.floor(y), np.floor(x)) ** rng.choice([0, 0.7]))
    return np.clip((radius - np.hypot(y % 1 - 0.5, x % 1 - 0.5)) * pitch * unit + 0.5, 0, 1)


def strokes(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Short lines strewn over each other, long or round, all one way or every way."""
    canvas = np.full((side, side), rng.random(), np.float32)
    long, thick = unit * rng.uniform(1, 14), unit * rng.uniform(0.6, 4)
    way, spread = rng.uniform(0, np.pi), rng.choice([0.2, np.pi])
    count = int(min(4000, rng.uniform(0.5, 2.5) * side * side / (thick * (long + thick))))
    middles, angles = rng.uniform(0, side, (count, 2)), way + rng.uniform(-spread, spread, count)
    reach = np.stack([np.cos(angles), np.sin(angles)], 1) * long / 2
    tones = rng.random(count)
    for start, end, tone in zip((middles - reach).round(), (middles + reach).round(), tones, strict=True):
        cv2.line(canvas, start.astype(int).tolist(), end.astype(int).tolist(), float(tone), max(1, round(thick)))
    return canvas


def plain(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """One tone, or a soft run from one to another."""
    y, _ = turned(rng, side, side, 0.2)
    return 0.5 + rng.choice([0.1, rng.uniform(0.2, 1)]) * (y - y.mean())


STRUCTURES: tuple[Structure, ...] = (cloud, stripes, lattice, stones, spots, strokes, plain)


def colours(rng: np.random.Generator) -> np.ndarray:
    """Two to four colours that may or may not be near each other: float32 (n, 3), RGB in 0..1."""
    hue, spread = rng.random(), rng.choice([0.04, 0.15, 0.5])
    bright, range_ = rng.uniform(0.2, 0.9), rng.uniform(0.05, 0.6)
    rows = [
        colorsys.hsv_to_rgb(
            (hue + rng.uniform(-spread, spread)) % 1,
            rng.uniform(0, 0.9) ** rng.choice([1, 2]),
            float(np.clip(bright + rng.uniform(-range_, range_), 0.03, 1)),
        )
        for _ in range(int(rng.integers(2, 5)))
    ]
    return np.array(rows, np.float32)


def free(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """A texture of one or two random structures in random colours: float32 (side, side, 3), RGB of about 0..1."""
    first, second = (STRUCTURES[i] for i in rng.choice(len(STRUCTURES), 2, replace=False))
    tone = first(rng, side, unit)
    if rng.random() < SECOND:
        tone = tone + rng.uniform(0.15, 0.6) * (second(rng, side, unit) - 0.5)
    palette = colours(rng)
    place = np.clip(tone, 0, 1) * (len(palette) - 1)
    if rng.random() < STEPS:
        place = np.round(place)
    image = np.stack([np.interp(place, range(len(palette)), palette[:, c]) for c in range(3)], axis=-1)
    grain = rng.uniform(0, 0.08) * noise(rng, side, rng.uniform(0, 0.8))
    return (image * (1 + grain[..., None])).astype(np.float32)
