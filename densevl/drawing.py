"""Pictures of label maps: the palette, the coloured photo with its legend, and sheets of several pictures."""

from __future__ import annotations

import bisect
import colorsys
import math
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from densevl.errors import DensevlError

UInt8Array = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Distinct from each other and from common photo ground; neighbours in the list differ most.
_FIRST_COLOURS = (
    (230, 57, 70),  # red
    (33, 131, 240),  # blue
    (255, 196, 0),  # amber
    (46, 184, 92),  # green
    (160, 80, 230),  # violet
    (255, 122, 26),  # orange
    (0, 200, 208),  # cyan
    (255, 92, 172),  # pink
    (168, 222, 36),  # lime
    (142, 92, 58),  # brown
    (40, 64, 158),  # navy
    (250, 218, 172),  # sand
)
_GOLDEN = (math.sqrt(5) - 1) / 2

_PAPER: Colour = (255, 255, 255)
_INK: Colour = (33, 37, 41)
_FAINT: Colour = (125, 132, 140)


def palette(count: int) -> UInt8Array:
    """Return the colours of classes 0 to count - 1; a class keeps its colour whatever the count.

    The first twelve are hand-picked to stay apart over photos; later ones walk the hues by the golden ratio, with
    saturation and brightness taking turns.

    Args:
        count: how many, 0 or more.

    Returns:
        uint8 RGB (count, 3).
    """
    later = [_walked_colour(step) for step in range(max(0, count - len(_FIRST_COLOURS)))]
    return np.array([*_FIRST_COLOURS, *later][: max(0, count)], np.uint8).reshape(-1, 3)


def draw_overlay(
    image: UInt8Array,
    labels: npt.NDArray[np.int16],
    names: Sequence[str],
    *,
    alpha: float = 0.5,
    legend: bool = True,
) -> UInt8Array:
    """Colour a photo by its labels, line the borders of classes, and put a legend below.

    Args:
        image: uint8 RGB (H, W, 3).
        labels: int16 (H, W), index into names, -1 where nothing; such pixels stay the plain photo.
        names: the display name of each class.
        alpha: strength of the colours, 0-1. legend: whether it is put below.

    Returns:
        uint8 RGB (H + legend, W, 3); a photo too narrow for a legend is centred on white, so W may grow.

    Raises:
        DensevlError: alpha is outside 0-1.
    """
    if not 0 <= alpha <= 1:
        raise DensevlError(f"alpha is {alpha}: it must be 0 (plain photo) to 1 (plain colours)")
    painted = _paint(image, labels, palette(len(names)), alpha)
    return _with_legend(painted, _legend_entries(labels, names)) if legend else painted


def draw_shares(image: UInt8Array, shares: Mapping[str, float]) -> UInt8Array:
    """Put names and their shares (0-1) below a photo, each with the colour of its number.

    Args:
        image: uint8 RGB (H, W, 3). shares: the class numbers are by their order; the largest five are drawn.

    Returns:
        uint8 RGB (H + legend, W, 3); a photo too narrow for a legend is centred on white, so W may grow.
    """
    colours = palette(len(shares)).tolist()
    entries = [_Entry(name, _percent(p), tuple(colours[number])) for number, (name, p) in enumerate(shares.items())]
    order = sorted(range(len(entries)), key=lambda number: -list(shares.values())[number])
    return _with_legend(image, [entries[number] for number in order[:5]])


def draw_key(names: Sequence[str], height: int, width: int) -> UInt8Array:
    """The colours of classes, whether they are there or not: the same below every frame of a video.

    Args:
        height, width: of the picture that it is for.

    Returns:
        uint8 RGB (h, W, 3), at least as wide as the picture.
    """
    colours = palette(len(names)).tolist()
    entries = [_Entry(name, "", tuple(colours[number])) for number, name in enumerate(names[:_MOST_ENTRIES])]
    if more := len(names) - len(entries):
        entries.append(_Entry(f"+{more} more", "", None))
    return np.array(_draw_legend(entries, max(width, _LEGEND_WIDTH), _text_size(height, width)))


def _with_legend(picture: UInt8Array, entries: list[_Entry]) -> UInt8Array:
    height, width = picture.shape[:2]
    legend = _draw_legend(entries, max(width, _LEGEND_WIDTH), _text_size(height, width))
    sheet = Image.new("RGB", (legend.width, height + legend.height), _PAPER)
    sheet.paste(Image.fromarray(picture), ((legend.width - width) // 2, 0))
    sheet.paste(legend, (0, height))
    return np.array(sheet)


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

    sheet = Image.new("RGB", (width, sum(heights) + gap * (len(rows) + 1)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = gap
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, tile in enumerate(row):
            left = gap + column * (cell + gap)
            if titles is not None:
                title = _line(titles[number * columns + column], size, cell)
                title.draw(draw, left, top + title_height * 0.42, _INK)
            sheet.paste(tile, (left, top + title_height))
        top += height + gap
    return np.array(sheet)


def _scaled(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)


def _walked_colour(step: int) -> Colour:
    hue = (0.03 + step * _GOLDEN) % 1.0
    saturation = (0.78, 0.5, 0.95, 0.62)[step % 4]
    value = (0.95, 0.72, 0.84, 0.58, 1.0)[step % 5]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


# The photo -----------------------------------------------------------------------------------------------------------


def _paint(image: UInt8Array, labels: npt.NDArray[np.int16], colours: UInt8Array, alpha: float) -> UInt8Array:
    """Blend the colours over the photo, at full strength on the borders of classes."""
    strength = round(alpha * 256)
    table = np.concatenate([colours, np.zeros((1, 3), np.uint8)]).astype(np.uint16)  # -1 takes the last row
    thickness = max(1, round(math.sqrt(labels.size) / 700))
    borders = _borders(labels, thickness)
    out = np.empty_like(image)
    step = max(1, 2**18 // labels.shape[1])  # rows at a time: keeps the 16-bit copies small
    for start in range(0, len(labels), step):
        band = slice(start, start + step)
        colour = table[labels[band]]
        mixed = (image[band] * np.uint16(256 - strength) + colour * np.uint16(strength)) >> 8
        mixed = np.where(borders[band, :, None], colour, mixed)
        out[band] = np.where(labels[band, :, None] < 0, image[band], mixed)
    return out


def _borders(labels: npt.NDArray[np.int16], thickness: int) -> npt.NDArray[np.bool_]:
    """Return where a different label lies within `thickness` pixels to the right, below, left or above."""
    near = np.zeros(labels.shape, bool)
    for reach in range(1, thickness + 1):
        for axis in (0, 1):
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(reach, None), slice(None, -reach)
            differs = labels[tuple(ahead)] != labels[tuple(behind)]
            near[tuple(ahead)] |= differs
            near[tuple(behind)] |= differs
    return near


# The legend ----------------------------------------------------------------------------------------------------------

_LEGEND_WIDTH = 200
_MOST_ENTRIES = 24


class _Entry(NamedTuple):
    name: str
    share: str
    colour: Colour | None  # None is drawn as an empty frame


def _legend_entries(labels: npt.NDArray[np.int16], names: Sequence[str]) -> list[_Entry]:
    """List the classes present, largest first, then what is left over."""
    shares = np.bincount(labels.ravel() + 1, minlength=len(names) + 1) / labels.size
    colours = palette(len(names)).tolist()
    present = sorted((index for index in range(len(names)) if shares[index + 1] > 0), key=lambda i: -shares[i + 1])
    entries = [_Entry(names[i], _percent(shares[i + 1]), tuple(colours[i])) for i in present[:_MOST_ENTRIES]]
    if rest := present[_MOST_ENTRIES:]:
        entries.append(_Entry(f"+{len(rest)} more", _percent(sum(shares[i + 1] for i in rest)), None))
    if shares[0] > 0:
        entries.append(_Entry("nothing", _percent(shares[0]), None))
    return entries


def _draw_legend(entries: list[_Entry], width: int, size: int) -> Image.Image:
    """Draw entries in columns of equal width, as many as fit, filled row by row."""
    if len(entries) > 12:
        size = max(12, round(size * 0.75))
    swatch, margin, space = round(size * 0.95), round(size * 0.9), round(size * 0.5)
    between, row_height, room = round(size * 1.6), round(size * 1.65), width - 2 * margin
    shares = [_line(entry.share, size) for entry in entries]
    other = swatch + 2 * space + math.ceil(max(share.length for share in shares))  # what a cell holds beside the name
    longest = max(math.ceil(_line(entry.name, size).length) for entry in entries)
    cell = other + min(longest, size * 11, max(0, room - other))
    columns = max(1, min(len(entries), (room + between) // (cell + between)))
    if columns < len(entries) or columns == 1:  # several rows share out the whole width, long names use it
        cell = (room + between) // columns - between
    names = [_line(entry.name, size, cell - other) for entry in entries]
    rows = math.ceil(len(entries) / columns)

    legend = Image.new("RGB", (width, rows * row_height + 2 * round(size * 0.6)), _PAPER)
    draw = ImageDraw.Draw(legend)
    for number, (entry, name, share) in enumerate(zip(entries, names, shares, strict=True)):
        row, column = divmod(number, columns)
        left = margin + column * (cell + between)
        middle = round(size * 0.6) + row * row_height + row_height // 2
        _paste_swatch(legend, entry.colour, swatch, left, middle - swatch // 2)
        name.draw(draw, left + swatch + space, middle, _INK if entry.colour else _FAINT)
        share.draw(draw, left + swatch + 2 * space + name.length, middle, _FAINT)
    return legend


def _paste_swatch(legend: Image.Image, colour: Colour | None, size: int, left: int, top: int) -> None:
    """Paste a rounded square, or an empty frame for no colour."""
    fine = 4  # drawn larger and shrunk, for smooth corners
    mask = Image.new("L", (size * fine, size * fine), 0)
    edge = size * fine - 1
    line = 0 if colour else max(fine, round(size * fine * 0.11))
    ImageDraw.Draw(mask).rounded_rectangle(
        (0, 0, edge, edge), radius=size * fine // 4, fill=None if line else 255, outline=255, width=line or 1
    )
    legend.paste(colour or _FAINT, (left, top), mask.resize((size, size), Image.Resampling.LANCZOS))


def _percent(share: float) -> str:
    if share < 0.001:
        return "<0.1%"
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


# Text ----------------------------------------------------------------------------------------------------------------


def _text_size(height: int, width: int) -> int:
    """Return a text height in pixels that reads well under a picture of this size, whatever its ratio."""
    return round(min(max(13, math.sqrt(height * width) / 36), max(13, width / 16), 72))


# Pillow's own font knows little beyond ASCII; for other names the first of these found on the system that has all
# their letters is taken. Without any, accents are dropped and what is left becomes the font's empty box.
_OTHER_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "PingFang.ttc",
)


@lru_cache(maxsize=32)
def _font(size: int, name: str = "") -> Font:
    """Load a font by file name from the system's folders; Pillow's own where it has none, or without a name."""
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size=size)
    except OSError:
        return ImageFont.load_default(size=size)
    except ImportError:  # a Pillow built without FreeType has one small bitmap font
        return ImageFont.load_default()


@lru_cache(maxsize=4096)
def _has(font: Font, character: str) -> bool:
    """Tell whether a font draws a character as something else than its box for missing ones."""
    if character.isascii() or not isinstance(font, ImageFont.FreeTypeFont):
        return character.isascii()
    return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


class _Line(NamedTuple):
    """One line of text and a font that can draw it."""

    text: str
    font: Font

    @property
    def length(self) -> float:
        return self.font.getlength(self.text)

    def draw(self, draw: ImageDraw.ImageDraw, left: float, middle: float, ink: Colour) -> None:
        anchor = "lm" if isinstance(self.font, ImageFont.FreeTypeFont) else None
        draw.text((left, middle if anchor else middle - 6), self.text, fill=ink, font=self.font, anchor=anchor)


def _line(text: str, size: int, width: float = math.inf) -> _Line:
    """Choose a font for a text and cut it, with dots, where it is wider than `width` pixels."""
    text = "".join(c if c.isprintable() else " " for c in text[:500])  # also lone surrogates, which no font takes
    text = " ".join(text.split())
    fonts = (_font(size, name) for name in ("", *_OTHER_FONTS))
    font = next((font for font in fonts if all(_has(font, c) for c in text)), None)
    if font is None:
        font = _font(size)
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
        if not isinstance(font, ImageFont.FreeTypeFont):
            text = text.encode("ascii", "replace").decode()
    if font.getlength(text) <= width:
        return _Line(text, font)
    lengths = range(1, len(text) + 1)
    fitting = bisect.bisect_right(lengths, width, key=lambda length: font.getlength(f"{text[:length]}..."))
    return _Line(f"{text[:fitting].rstrip()}...", font)
