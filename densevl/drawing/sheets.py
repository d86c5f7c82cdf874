"""Sheets of several pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from densevl.drawing.colours import INK, PAPER, UInt8Array
from densevl.drawing.text import line
from densevl.errors import DensevlError


def contact_sheet(
    images: Sequence[UInt8Array], titles: Sequence[str] | None = None, columns: int = 2, width: int = 1600
) -> UInt8Array:
    """Tile pictures of any sizes into one, row by row, each scaled to its column and with its title above.

    Args:
        images: uint8 RGB (H, W, 3) each, at least one.
        titles: a line for each picture.
        columns: pictures in a row, at least 1; never more than there are pictures.
        width: of the sheet, in pixels.

    Returns:
        uint8 RGB (H, width, 3) on white.

    Raises:
        DensevlError: no images, a number of titles that differs, or columns that do not fit into the width.
    """
    if len(images) == 0 or (titles is not None and len(titles) != len(images)):
        raise DensevlError(f"{len(images)} images and {len(titles or [])} titles: give at least one and as many titles")
    columns = min(columns, len(images))
    gap = max(4, width // 64)
    cell = (width - gap * (columns + 1)) // columns if columns > 0 else 0
    if cell < 8:
        raise DensevlError(f"{columns} columns do not fit into {width} pixels: use at least 1 column and a wider sheet")
    size = max(11, cell // 30)
    title_height = 0 if titles is None else round(1.9 * size)
    tiles = [_scaled(Image.fromarray(image), cell) for image in images]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [title_height + max(tile.height for tile in row) for row in rows]

    sheet = Image.new("RGB", (width, sum(heights) + gap * (len(rows) + 1)), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = gap
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, tile in enumerate(row):
            left = gap + column * (cell + gap)
            if titles is not None:
                title = line(titles[number * columns + column], size, cell)
                title.draw(draw, left, top + title_height * 0.42, INK)
            sheet.paste(tile, (left, top + title_height))
        top += height + gap
    return np.array(sheet)


def _scaled(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)
