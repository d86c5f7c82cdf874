"""Draw what a search found as one picture: every photo with the region marked, best first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from densevl.drawing import contact_sheet, draw_overlay, palette
from densevl.errors import LabelError
from densevl.images import read_image, resize
from densevl.regions.index import Hit

SIDE = 640  # longest side of a photo on the sheet


def hit_sheet(hits: Sequence[Hit], query: str, *, columns: int = 3) -> npt.NDArray[np.uint8]:
    """Draw the hits of one query: uint8 RGB (H, W, 3), each titled with query, photo and score.

    Args:
        hits: from `RegionSearch.find`, at least one. Their photos are read again. query: shown above each.
        columns: number of columns.

    Raises:
        LabelError: If there are no hits.
        ImageError: If a photo is gone or has changed.
    """
    if not hits:
        raise LabelError(f"nothing was found for {query!r}, so there is nothing to draw")
    tiles = [_tile(hit, query) for hit in hits]
    titles = [f"{query}: {Path(hit.path).name} {hit.score:.3f}" for hit in hits]
    columns = min(columns, len(tiles))
    return contact_sheet(tiles, titles, columns=columns, width=columns * 480)


def _tile(hit: Hit, query: str) -> npt.NDArray[np.uint8]:
    rgb = read_image(hit.path)
    mask = hit.region.mask(0)
    if rgb.shape[:2] != mask.shape:
        mask = np.zeros(rgb.shape[:2], bool)  # the photo has changed since: only its box can be shown
    scale = SIDE / max(rgb.shape[:2])
    size = (max(1, round(rgb.shape[0] * scale)), max(1, round(rgb.shape[1] * scale)))
    large = resize(mask.astype(np.uint8)[..., None] * 255, size)[..., 0] > 127
    drawn = draw_overlay(resize(rgb, size), large.astype(np.int16) - 1, [query], captions=False)
    left = (drawn.shape[1] - size[1]) // 2
    picture = Image.fromarray(drawn[: size[0], left : left + size[1]])  # every tile would have the same legend
    x0, y0, x1, y1 = (side * scale for side in hit.box)
    ImageDraw.Draw(picture).rectangle((x0, y0, x1 - 1, y1 - 1), outline=tuple(palette(1)[0].tolist()), width=3)
    return np.array(picture)
