"""Put several pictures on one sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from densevl.drawing.colours import FAINT, INK, PAPER, Colour, UInt8Array
from densevl.drawing.text import Line, line
from densevl.errors import DensevlError

Key = Sequence[tuple[str, Colour | None]]
"""The text below a picture of a sheet: names, each with its colour on the picture."""
GROUND: Colour = (241, 243, 245)
"""Fill of a cell beside a picture that is smaller than it."""
FLAT, TALL = 0.5, 1.35
"""Smallest and largest height of a cell, in widths."""
ENLARGED = 2.0
"""Largest magnification of a picture."""
LINES = 2
"""Maximum number of lines of a key."""
MOST_BYTES = 1_000_000
QUALITY = 85


def contact_sheet(
    images: Sequence[UInt8Array],
    titles: Sequence[str] | None = None,
    columns: int = 2,
    width: int = 1600,
    keys: Sequence[Key] | None = None,
    letters: int | None = None,
) -> UInt8Array:
    """Tile pictures of any sizes row by row, each whole and centred in a cell of equal size.

    Cells have the median shape of the pictures, within `FLAT` and `TALL`.

    Args:
        images: uint8 RGB (H, W, 3) each, at least one.
        titles: one line above each picture.
        columns: pictures per row, at least 1; reduced to the number of pictures.
        width: of the sheet in pixels.
        keys: names and colours below each picture; as many as fit into `LINES` lines.
        letters: height of the text in pixels; None takes what suits the cells.

    Returns:
        uint8 RGB (H, width, 3) on white.

    Raises:
        DensevlError: If there are no images, titles or keys do not match in number, or columns do not fit into the
            width.
    """
    for told in (titles, keys):
        if len(images) == 0 or (told is not None and len(told) != len(images)):
            raise DensevlError(
                f"{len(images)} images and {len(told or [])} titles: give at least one and as many titles"
            )
    columns = min(columns, len(images))
    gap = max(4, width // 64)
    across = (width - gap * (columns + 1)) // columns if columns > 0 else 0
    if across < 8:
        raise DensevlError(f"{columns} columns do not fit into {width} pixels: use at least 1 column and a wider sheet")
    size = letters or max(11, across // 26)
    row = round(1.9 * size)
    above = 0 if titles is None else row
    laid = [_laid(key, max(10, round(size * 0.9)), across) for key in keys or ()]
    below = round(0.8 * row) * max((len(lines) for lines in laid), default=0)
    shape = float(np.median([image.shape[0] / image.shape[1] for image in images]))
    down = max(1, round(across * min(max(shape, FLAT), TALL)))
    step = above + down + below + gap

    sheet = Image.new("RGB", (width, gap + step * -(-len(images) // columns)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, image in enumerate(images):
        left = gap + number % columns * (across + gap)
        top = gap + number // columns * step
        if titles is not None:
            line(titles[number], size, across).draw(draw, left, top + above * 0.42, INK)
        tile = _scaled(Image.fromarray(image), across, down)
        if tile.size != (across, down):
            sheet.paste(GROUND, (left, top + above, left + across, top + above + down))
        sheet.paste(tile, (left + (across - tile.width) // 2, top + above + (down - tile.height) // 2))
        for index, entries in enumerate(laid[number] if laid else ()):
            middle = top + above + down + round(0.8 * row * (index + 0.62))
            for entry in entries:
                entry.draw(draw, left, middle)
    return np.array(sheet)


def encode_sheet(sheet: UInt8Array, most: int = MOST_BYTES) -> bytes:
    """Encode a sheet, uint8 RGB (H, W, 3), as a JPEG file, reduced until it has at most `most` bytes."""
    image = Image.fromarray(sheet)
    while True:
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=QUALITY)
        if buffer.tell() <= most or max(image.size) < 64:
            return buffer.getvalue()
        share = min(0.9, (most / buffer.tell()) ** 0.5)
        image = image.resize([max(1, int(side * share)) for side in image.size], Image.Resampling.LANCZOS)


def _scaled(picture: Image.Image, across: int, down: int) -> Image.Image:
    """Scale a whole picture to fit a cell."""
    scale = min(across / picture.width, down / picture.height, ENLARGED)
    size = (min(across, max(1, round(picture.width * scale))), min(down, max(1, round(picture.height * scale))))
    return picture.resize(size, Image.Resampling.LANCZOS)


class _Entry(NamedTuple):
    """A name of a key and its position. Attributes: swatch: side of the square before it, 0 for none."""

    name: Line
    colour: Colour | None
    start: int
    swatch: int

    def draw(self, draw: ImageDraw.ImageDraw, left: int, middle: int) -> None:
        """Draw it, `start` pixels to the right of a point."""
        left, side = left + self.start, self.swatch
        if side:
            box = (left, middle - side // 2, left + side, middle - side // 2 + side)
            draw.rounded_rectangle(box, radius=side // 4, fill=self.colour, outline=self.colour or FAINT)
        self.name.draw(draw, left + round(1.5 * side), middle, INK if self.colour else FAINT)


def _laid(key: Key, size: int, across: int) -> list[list[_Entry]]:
    """Lay a key out in at most `LINES` lines; the number of omitted names is at the end."""
    lines: list[list[_Entry]] = [[]]
    swatch, space, start = round(size * 0.8), size, 0
    for number, (name, colour) in enumerate(key):
        shown = line(name, size, across - round(1.5 * swatch))
        wide = round(1.5 * swatch + shown.length)
        more = line(f"+{len(key) - number}", size)
        left = len(key) - number - 1
        room = across - start - (round(more.length) + space if left and len(lines) == LINES else 0)
        if wide > room and start and len(lines) < LINES:
            lines.append([])
            start = 0
        elif wide > room and start:
            lines[-1].append(_Entry(more, None, start, 0))
            break
        lines[-1].append(_Entry(shown, colour, start, swatch))
        start += wide + space
    return lines
