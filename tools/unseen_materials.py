"""Surfaces that no shipped model was trained on, for the anomaly benchmark: marble, cardboard, carbon weave, cork."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.render.materials import Maker, cells, grid, mix, noise, rgb
from tools.render.surfaces import damage

LIGHT = 0.06  # how much brightness may differ between two pictures of one surface


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


UNSEEN: dict[str, Maker] = {"marble": marble, "cardboard": cardboard, "carbon weave": carbon, "cork": cork}


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
