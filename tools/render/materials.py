"""Generators of the textures, in numpy. A `Maker` returns (side, side, 3) RGB of about 0..1; the caller clips."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Maker = Callable[[np.random.Generator, int, float], np.ndarray]


def rgb(*values: int) -> np.ndarray:
    """Colour from 0..255 numbers as float32 (3,)."""
    return np.array(values, np.float32) / 255


def mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Blend two colours or images by a (H, W) share of the second, clipped to 0..1: float32 (H, W, 3)."""
    t = np.clip(share, 0, 1)[..., None].astype(np.float32)
    return first * (1 - t) + second * t


def noise(rng: np.random.Generator, side: int, slope: float, stretch: float = 1.0) -> np.ndarray:
    """Spectral noise of mean 0 and deviation 1: float32 (side, side).

    Args:
        slope: amplitude falls as frequency to this power: 0 is white, 2 is clouds.
        stretch: above 1 the pattern is drawn out along x by this factor, below 1 along y.
    """
    fy = np.fft.fftfreq(side)[:, None]
    fx = np.fft.rfftfreq(side)[None]
    distance = np.hypot(fy, fx * stretch) if stretch >= 1 else np.hypot(fy / stretch, fx)
    distance[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) * distance**-slope
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (side, side))
    return (field / field.std()).astype(np.float32)


def grid(side: int, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of every pixel in pattern units (pixels of a 64-px scene): two float32 (side, side)."""
    line = np.arange(side, dtype=np.float32) / unit
    return line[:, None].repeat(side, 1), line[None].repeat(side, 0)


def per_cell(rng: np.random.Generator, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Uniform 0..1 number per integer cell (row, column), looked up for every pixel."""
    table = rng.random((int(row.max()) + 2, int(column.max()) + 2)).astype(np.float32)
    return table[row.astype(int), column.astype(int)]


def cells(rng: np.random.Generator, side: int, pitch: float, loose: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Voronoi cells of a jittered grid: gap to the nearest border in units of the pitch, and a random number per cell.

    Args:
        pitch: pixels between neighbouring seeds.
        loose: 0 for a square grid, 1 for seeds anywhere in their square.
    """
    count = int(side / pitch) + 4
    jitter = (rng.random((count, count, 2), np.float32) - 0.5) * loose + 0.5
    value = rng.random((count, count), np.float32)
    y, x = grid(side, pitch)
    y, x = y + 1, x + 1
    iy, ix = y.astype(int), x.astype(int)
    nearest = np.full((side, side), 9.0, np.float32)
    second = nearest.copy()
    owner = np.zeros_like(nearest)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            seed = jitter[iy + dy, ix + dx]
            far = np.hypot(iy + dy + seed[..., 0] - y, ix + dx + seed[..., 1] - x)
            closer = far < nearest
            second = np.where(closer, nearest, np.minimum(second, far))
            owner = np.where(closer, value[iy + dy, ix + dx], owner)
            nearest = np.where(closer, far, nearest)
    return (second - nearest) / 2, owner


def sky(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Blue, paler towards the bottom, with clouds."""
    y, _ = grid(side, 1)
    blue = mix(rgb(60, 130, 215), rgb(165, 210, 245), y / side * rng.uniform(0.7, 1.2))
    clouds = noise(rng, side, 1.9, 1.8) - rng.uniform(0.2, 1.2)
    return mix(blue, rgb(248, 250, 255), clouds * 0.9)


def grass(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Green blades, drawn out upwards."""
    blades = noise(rng, side, 0.7, 0.22)
    patches = noise(rng, side, 1.6)
    base = mix(rgb(38, 96, 22), rgb(120, 180, 60), 0.45 + 0.24 * blades + 0.1 * patches)
    return base * (1 + 0.05 * noise(rng, side, 0.2)[..., None])


def sand(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Beige grains with soft wind ripples."""
    y, x = grid(side, unit)
    wave = np.sin((y + 2.5 * noise(rng, side, 2.0) + x * rng.uniform(-0.4, 0.4)) * 2 * np.pi / rng.uniform(9, 14))
    grain = noise(rng, side, 0.1)
    return mix(rgb(196, 160, 108), rgb(240, 216, 166), 0.55 + 0.2 * wave + 0.13 * grain)


def wood(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Planks along x with grain and dark seams."""
    y, _ = grid(side, unit)
    width = rng.uniform(13, 20)
    plank = np.floor(y / width)
    tone = per_cell(rng, plank, plank * 0)
    grain = noise(rng, side, 1.1, 14)
    rings = np.sin((y + 1.2 * noise(rng, side, 1.8, 6) + 9 * tone) * 2.2)
    light, dark = (rgb(205, 150, 92), rgb(112, 66, 30)) if rng.random() < 0.6 else (rgb(170, 110, 62), rgb(84, 46, 24))
    base = mix(light, dark, 0.3 + 0.35 * (tone - 0.5) + 0.14 * grain + 0.1 * rings)
    seam = np.minimum(y % width, width - y % width) < 0.45
    return np.where(seam[..., None], base * 0.4, base)


def brick(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Red bricks in a running bond with pale mortar."""
    y, x = grid(side, unit)
    tall, wide, joint = 8.0, 18.0, 0.9
    row = np.floor(y / tall)
    shifted = x + (row % 2) * wide / 2
    column = np.floor(shifted / wide)
    tone = per_cell(rng, row, column)
    base = mix(rgb(128, 52, 36), rgb(196, 100, 70), tone + 0.12 * noise(rng, side, 0.5))
    edge = np.minimum.reduce([y % tall, tall - y % tall, shifted % wide, wide - shifted % wide])
    mortar = rgb(205, 196, 184) * (1 + 0.06 * noise(rng, side, 0.3)[..., None])
    return mix(base, mortar, (joint - edge) * unit + 0.5)


def water(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Teal waves with bright crests."""
    y, x = grid(side, unit)
    bend = noise(rng, side, 1.9, 2.5)
    wave = np.sin(y * 2 * np.pi / 6.5 + 2.2 * bend) * 0.5 + 0.5 * np.sin(y * 2 * np.pi / 11 + x * 0.1 + 3 * bend)
    base = mix(rgb(8, 74, 112), rgb(42, 150, 176), 0.5 + 0.4 * wave)
    return mix(base, rgb(215, 245, 248), (wave - 0.72) * 2.6)


def snow(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Near white with bluish hollows and a few glints."""
    base = mix(rgb(200, 216, 236), rgb(252, 253, 255), 0.68 + 0.3 * noise(rng, side, 1.9))
    return base + 0.02 * noise(rng, side, 0)[..., None]


def cobblestone(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Rounded grey stones with dark gaps."""
    gap, tone = cells(rng, side, 11 * unit, 0.55)
    stone = mix(rgb(96, 94, 92), rgb(176, 170, 162), tone + 0.12 * noise(rng, side, 0.6))
    dome = np.clip(gap * 3.2, 0, 1) ** 0.7
    return mix(rgb(44, 42, 40), stone, dome)


def night(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Dark blue with stars and a faint band."""
    base = mix(rgb(6, 9, 30), rgb(44, 42, 92), 0.35 + 0.3 * noise(rng, side, 2.2))
    stars = np.zeros((side, side), np.float32)
    count = int(side * side / (unit * unit) * 0.012)
    spots = rng.integers(0, side, (count, 2))
    stars[spots[:, 0], spots[:, 1]] = rng.random(count) ** 2 * (1 + 3 * unit)
    stars = np.maximum(np.minimum(stars, 1), cv2.GaussianBlur(stars, (0, 0), 0.45 * unit) * 1.6)
    return mix(base, rgb(255, 252, 235), stars)


def cloth(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Gingham: white crossed by bands of one colour, with a weave."""
    y, x = grid(side, unit)
    pitch = rng.uniform(5, 8)
    colour = (rgb(200, 36, 44), rgb(36, 84, 180), rgb(38, 130, 72))[int(rng.integers(3))]
    down, across = (np.floor(y / pitch) % 2), (np.floor(x / pitch) % 2)
    weave = 0.05 * np.sin((x + y) * 5) + 0.03 * noise(rng, side, 0)
    return mix(rgb(250, 247, 242), colour, (down + across) / 2) * (1 + weave[..., None])


def soil(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Dark brown clumps with a few small stones."""
    clumps = noise(rng, side, 0.9)
    base = mix(rgb(44, 28, 18), rgb(120, 82, 54), 0.45 + 0.25 * clumps + 0.08 * noise(rng, side, 0))
    gap, tone = cells(rng, side, 7 * unit)
    return mix(base, rgb(158, 140, 120), np.where(tone > 0.9, (gap - 0.18) * 8, 0))


def metal(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Brushed steel: fine lines along x and a soft sheen."""
    y, x = grid(side, 1)
    sheen = np.sin((x * rng.uniform(0.3, 1) + y) / side * np.pi * rng.uniform(1, 2) + rng.uniform(0, 6))
    lines = noise(rng, side, 0.35, 40)
    return mix(rgb(120, 126, 134), rgb(224, 228, 232), 0.5 + 0.28 * sheen + 0.13 * lines)


def tiles(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Square glazed tiles with grey joints."""
    y, x = grid(side, unit)
    pitch = rng.uniform(14, 18)
    palette = ((150, 205, 200), (236, 228, 205), (150, 178, 214), (222, 186, 170))
    colour = rgb(*palette[int(rng.integers(len(palette)))])
    tone = per_cell(rng, np.floor(y / pitch), np.floor(x / pitch))
    shine = (y % pitch + x % pitch) / pitch
    base = colour * (1.02 + 0.14 * (tone - 0.5) - 0.07 * (shine - 1) + 0.012 * noise(rng, side, 0.8))[..., None]
    edge = np.minimum.reduce([y % pitch, pitch - y % pitch, x % pitch, pitch - x % pitch])
    return mix(base, rgb(92, 92, 96), (0.75 - edge) * unit + 0.5)


def leaves(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Overlapping orange, red and yellow leaves."""
    hues = np.stack([rgb(*c) for c in ((206, 88, 22), (226, 152, 40), (150, 46, 24), (178, 122, 48), (120, 74, 30))])
    base = np.broadcast_to(rgb(70, 40, 22), (side, side, 3)).copy()
    scale = 6.5 * unit
    for _ in range(int(3.2 * (side / scale) ** 2)):
        centre = rng.uniform(-scale, side + scale, 2)
        long, wide = scale * rng.uniform(0.7, 1.15), scale * rng.uniform(0.32, 0.5)
        angle = rng.uniform(0, 360)
        tone = hues[int(rng.integers(len(hues)))] * rng.uniform(0.8, 1.15)
        middle = (float(centre[0]), float(centre[1]))
        cv2.ellipse(base, (middle, (2 * long, 2 * wide), angle), (tone * 0.55).tolist(), -1)
        cv2.ellipse(base, (middle, (1.8 * long, 1.65 * wide), angle), tone.tolist(), -1)
        reach = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))]) * long * 0.8
        ends = [tuple(int(v) for v in centre + sign * reach) for sign in (-1, 1)]
        cv2.line(base, ends[0], ends[1], (tone * 0.7).tolist(), max(1, round(0.5 * unit)), cv2.LINE_AA)
    return base * (1 + 0.05 * noise(rng, side, 0.4)[..., None])


def wool(rng: np.random.Generator, side: int, unit: float) -> np.ndarray:
    """Stocking stitch: columns of V."""
    y, x = grid(side, unit)
    wide, tall = 7.0, 4.6
    palette = ((120, 70, 140), (206, 120, 140), (70, 110, 120), (190, 180, 160), (150, 60, 66))
    colour = rgb(*palette[int(rng.integers(len(palette)))])
    within = np.abs(x % wide / wide - 0.5) * 2
    phase = (y - within * tall * 1.1 + 0.35 * noise(rng, side, 1.6)) / tall % 1
    strand = np.sin(phase * np.pi) ** 0.8 * (1 - 0.55 * (np.abs(within - 0.5) > 0.42))
    return colour * (0.42 + 0.68 * strand + 0.05 * noise(rng, side, 0.3))[..., None]
