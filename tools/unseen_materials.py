"""Surfaces and patterns outside the training of all shipped models: for the anomaly benchmark, and as backgrounds.

No generator here may be one of `tools.render.materials` or a structure of `tools.render.grounds`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.render.materials import Maker, cells, grid, mix, noise, per_cell, rgb
from tools.render.surfaces import damage

LIGHT = 0.06  # maximum difference in brightness between two pictures of one surface


def marble(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Pale stone with dark veins."""
    cloud = noise(rng, side, 1.7)
    veins = np.exp(-np.abs(noise(rng, side, 1.5)) * rng.uniform(14, 20))
    base = mix(rgb(236, 233, 226), rgb(196, 198, 200), 0.4 + 0.25 * cloud)
    return mix(base, rgb(104, 104, 112), 0.55 * veins)


def cardboard(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Brown corrugated board, waves along x."""
    y, _ = grid(side, unit)
    wave = np.sin(2 * np.pi * y / rng.uniform(5, 7) + 0.15 * noise(rng, side, 1.8, 6))
    return mix(rgb(150, 112, 70), rgb(206, 168, 118), 0.5 + 0.35 * wave + 0.08 * noise(rng, side, 0.3))


def carbon(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Black twill weave of carbon fibre."""
    y, x = grid(side, unit)
    pitch = rng.uniform(4, 5)
    row, column = np.floor(y / pitch), np.floor(x / pitch)
    warp = (row + column) % 4 < 2
    shine = np.where(warp, np.abs(y / pitch % 1 - 0.5), np.abs(x / pitch % 1 - 0.5))
    return mix(rgb(22, 24, 28), rgb(96, 100, 108), 0.75 - 1.2 * shine + 0.1 * noise(rng, side, 0.2) - 0.2 * warp)


def cork(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Pressed grains of several browns."""
    gap, tone = cells(rng, side, rng.uniform(3, 4) * unit)
    base = mix(rgb(150, 104, 62), rgb(214, 172, 122), tone + 0.08 * noise(rng, side, 0.4))
    return base * (0.8 + 0.2 * np.clip(gap * 6, 0, 1))[..., None]


def hexagons(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Hexagonal tiles of two tones with pale joints."""
    y, x = grid(side, unit * rng.uniform(8, 13))
    far, tones = [], []
    for shift in (0.0, 0.5):  # a pixel belongs to the nearest centre of two shifted lattices
        row, column = np.round(y / 3**0.5 - shift), np.round(x - shift)
        down, across = np.abs(y - (row + shift) * 3**0.5), np.abs(x - column - shift)
        far.append(np.maximum(across, across / 2 + down * 0.75**0.5))
        tones.append(per_cell(rng, row + 1, column + 1))
    tone, joint = np.where(far[0] < far[1], *tones), np.minimum(*far) > 0.44
    first, second = rng.uniform(0.15, 0.9, (2, 3)).astype(np.float32)
    return np.where(joint[..., None], 0.85, mix(first, second, tone + 0.05 * noise(rng, side, 0.4)))


def rings(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Circles around one centre, like a cut tree."""
    y, x = grid(side, unit)
    centre = rng.uniform(0.2, 0.8, 2) * side / unit
    far = np.hypot(y - centre[0], x - centre[1]) + 1.2 * noise(rng, side, 1.9)
    first, second = rng.uniform(0.15, 0.9, (2, 3)).astype(np.float32)
    return mix(first, second, 0.5 + 0.45 * np.sin(far * 2 * np.pi / rng.uniform(4, 9)) + 0.05 * noise(rng, side, 0.5))


def triangles(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Facets: squares cut along a diagonal, each half in its own tone."""
    y, x = grid(side, unit * rng.uniform(8, 15))
    row, column = np.floor(y), np.floor(x)
    falling = (row + column) % 2 > 0
    upper = np.where(falling, y % 1 > x % 1, y % 1 + x % 1 > 1)
    tone = per_cell(rng, row, 2 * column + upper)
    first, second = rng.uniform(0.15, 0.95, (2, 3)).astype(np.float32)
    return mix(first, second, tone + 0.02 * noise(rng, side, 0.3))


def labyrinth(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Winding bands of one width, as on a zebra fish: noise of one wavelength, cut at its mean."""
    wave = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) * unit * rng.uniform(6, 11)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) * np.exp(-(((wave - 1) / 0.15) ** 2)))
    first, second = rng.uniform(0.1, 0.95, (2, 3)).astype(np.float32)
    return mix(first, second, 0.5 + 2 * (field / field.std())[:side, :side])


def scales(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Round shingles in overlapping rows."""
    y, x = grid(side, unit * rng.uniform(7, 11))
    shade = np.zeros((side, side), np.float32)
    for row in range(int(2 * y.max()) + 4, -3, -1):  # upper rows overlap lower ones
        across = (x + 0.5 * (row % 2)) % 1 - 0.5
        down = y - row / 2
        inside = (np.hypot(across, np.maximum(down, 0)) < 0.5) & (down > -0.5)
        shade = np.where(inside, 0.35 + np.hypot(across, down), shade)
    first, second = rng.uniform(0.15, 0.9, (2, 3)).astype(np.float32)
    return mix(first, second, shade + 0.04 * noise(rng, side, 0.4))


def herringbone(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Zigzag bands of cloth, each column leaning the other way."""
    y, x = grid(side, unit)
    wide, tall = rng.uniform(7, 12), rng.uniform(3, 6)
    lean = np.abs(x % (2 * wide) - wide)
    first, second = rng.uniform(0.15, 0.9, (2, 3)).astype(np.float32)
    band = np.sin((y + lean) * 2 * np.pi / tall)
    return mix(first, second, 0.5 + band + 0.08 * noise(rng, side, 0.2))


UNSEEN: dict[str, Maker] = {"marble": marble, "cardboard": cardboard, "carbon weave": carbon, "cork": cork}
"""Materials that can be damaged."""
PATTERNS: dict[str, Maker] = {
    **UNSEEN,
    "hexagons": hexagons,
    "rings": rings,
    "triangles": triangles,
    "labyrinth": labyrinth,
    "scales": scales,
    "herringbone": herringbone,
}
"""Backgrounds."""


def unseen_surfaces(name: str, size: int, seed: int) -> Callable[[str | None], tuple[np.ndarray, np.ndarray]]:
    """Pictures of parts of one surface: call with a kind of damage or None for uint8 (S, S, 3) and bool (S, S)."""
    rng = np.random.default_rng(seed)
    surface = np.clip(UNSEEN[name](rng, 3 * size, size / 64), 0, 1)

    def picture(kind: str | None) -> tuple[np.ndarray, np.ndarray]:
        top, left = rng.integers(0, 2 * size, 2)
        part = surface[top : top + size, left : left + size] * rng.uniform(1 - LIGHT, 1 + LIGHT)
        image = (np.clip(part, 0, 1) * 255 + 0.5).astype(np.uint8)
        return (image, np.zeros((size, size), bool)) if kind is None else damage(image, kind, rng)

    return picture
