"""Contact sheets to look at: nouns by style, scenes and surfaces with their masks."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .captions import DEFECTS
from .nouns import all_nouns
from .scenes import Scene
from .sprites import SpriteBook, level_for
from .surfaces import SurfaceMaker


def on_grey(sprite: np.ndarray, side: int, grey: int = 205) -> np.ndarray:
    """Put a premultiplied uint8 (h, w, 4) sprite in the middle of a grey uint8 (side, side, 3) square."""
    cell = np.full((side, side, 3), grey, np.uint8)
    h, w = sprite.shape[:2]
    scale = min(1.0, side / max(h, w))
    h, w = max(1, int(h * scale)), max(1, int(w * scale))
    small = cv2.resize(sprite, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32)
    y, x = (side - h) // 2, (side - w) // 2
    part = cell[y : y + h, x : x + w]
    part[:] = (small[..., :3] + part * (1 - small[..., 3:] / 255)).round()
    return cell


def noun_sheet(book: SpriteBook, nouns: Sequence[int], side: int = 48, columns: int = 2) -> np.ndarray:
    """Return a sheet of all drawings, one row per noun and one block of cells per style: uint8 (H, W, 3) RGB."""
    deepest = {style: max(len(book.drawings(n, style)) for n in nouns) for style in book.styles}
    rows = []
    for noun in nouns:
        label = np.full((side, 150, 3), 255, np.uint8)
        text = f"{noun} {all_nouns()[noun].name}"
        cv2.putText(label, text, (4, side // 2 + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        cells = [label]
        for style in book.styles:
            drawings = book.drawings(noun, style)
            cells += [on_grey(level_for(m, side - 4), side) for m in drawings]
            cells += [np.full((side, side, 3), 255, np.uint8)] * (deepest[style] - len(drawings))
            cells.append(np.full((side, 6, 3), 255, np.uint8))
        rows.append(np.concatenate(cells, 1))
    rows += [np.full_like(rows[0], 255)] * (-len(rows) % columns)
    tall = len(rows) // columns
    return np.concatenate([np.concatenate(rows[i * tall : (i + 1) * tall]) for i in range(columns)], 1)


def scene_sheet(scenes: Sequence[Scene], columns: int) -> np.ndarray:
    """Return scenes, each above its instance mask in arbitrary colours: uint8 (H, W, 3) RGB."""
    colours = np.random.default_rng(0).integers(60, 255, (64, 3)).astype(np.uint8)
    colours[-1] = 0  # the colour of instance -1
    cells = [np.concatenate([s.image, colours[s.instances]]) for s in scenes]
    rows = [np.concatenate(cells[i : i + columns], 1) for i in range(0, len(cells) - columns + 1, columns)]
    return np.concatenate(rows)


def surface_sheet(maker: SurfaceMaker) -> np.ndarray:
    """Return one row per material: flawless, then each kind of damage beside its mask: uint8 (H, W, 3) RGB."""
    rows = []
    for texture in maker.choices:
        cells = [maker.of(texture, None).image]
        for kind in DEFECTS:
            scene = maker.of(texture, kind)
            assert scene.defect is not None
            cells += [scene.image, scene.defect[..., None].repeat(3, 2).astype(np.uint8) * 255]
        rows.append(np.concatenate(cells, 1))
    return np.concatenate(rows)
