"""Draw label maps over photos, with names and a legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from densevl.drawing.captions import Captions, draw_captions
from densevl.drawing.colours import FAINT, INK, PAPER, Colour, UInt8Array, palette
from densevl.drawing.text import line, text_size
from densevl.errors import DensevlError


def draw_overlay(
    image: UInt8Array,
    labels: npt.NDArray[np.int16],
    names: Sequence[str],
    *,
    alpha: float = 0.5,
    legend: bool = True,
    captions: bool | Captions = True,
) -> UInt8Array:
    """Colour a photo by its labels, outline the classes, put names where they fit, and add a legend below.

    Args:
        image: uint8 RGB (H, W, 3).
        labels: int16 (H, W), index into names, -1 for nothing; such pixels keep the photo.
        names: the display name of each class.
        alpha: strength of the colours, 0-1. legend: whether to add it.
        captions: whether to put names on the picture; pass `Captions` for the frames of a video.

    Returns:
        uint8 RGB (H + legend, W, 3); a photo too narrow for a legend is centred on white, so W may grow.

    Raises:
        DensevlError: If alpha is outside 0-1.
    """
    if not 0 <= alpha <= 1:
        raise DensevlError(f"alpha is {alpha}: it must be 0 (plain photo) to 1 (plain colours)")
    painted = _paint(image, labels, palette(len(names)), alpha)
    if captions:
        place = captions if isinstance(captions, Captions) else Captions()
        painted = draw_captions(painted, place(labels, names))
    return _with_legend(painted, _legend_entries(labels, names)) if legend else painted


def draw_shares(image: UInt8Array, shares: Mapping[str, float]) -> UInt8Array:
    """Put names and their shares (0-1) below a photo, each with the colour of its class index.

    Args:
        image: uint8 RGB (H, W, 3). shares: by name, in the order of class indices. The largest five are drawn.

    Returns:
        uint8 RGB (H + legend, W, 3); a photo too narrow for a legend is centred on white, so W may grow.
    """
    colours = palette(len(shares)).tolist()
    named = enumerate(zip(_drawable(list(shares)), shares.values(), strict=True))
    entries = [_Entry(name, percent(share), tuple(colours[number])) for number, (name, share) in named]
    order = sorted(range(len(entries)), key=lambda number: -list(shares.values())[number])
    return _with_legend(image, [entries[number] for number in order[:5]])


def draw_key(names: Sequence[str], height: int, width: int) -> UInt8Array:
    """Draw the colours of all classes, present or not, so that the key is the same below every frame of a video.

    Args:
        height, width: size of the picture it is drawn for.

    Returns:
        uint8 RGB (h, W, 3), at least as wide as the picture.
    """
    colours = palette(len(names)).tolist()
    shown = _drawable(names[:_MOST_ENTRIES])
    entries = [_Entry(name, "", tuple(colours[number])) for number, name in enumerate(shown)]
    if more := len(names) - len(entries):
        entries.append(_Entry(f"+{more} more", "", None))
    return np.array(_draw_legend(entries, max(width, _LEGEND_WIDTH), text_size(height, width)))


def _with_legend(picture: UInt8Array, entries: list[_Entry]) -> UInt8Array:
    height, width = picture.shape[:2]
    legend = _draw_legend(entries, max(width, _LEGEND_WIDTH), text_size(height, width))
    sheet = Image.new("RGB", (legend.width, height + legend.height), PAPER)
    sheet.paste(Image.fromarray(picture), ((legend.width - width) // 2, 0))
    sheet.paste(legend, (0, height))
    return np.array(sheet)


# The photo -----------------------------------------------------------------------------------------------------------


def _paint(image: UInt8Array, labels: npt.NDArray[np.int16], colours: UInt8Array, alpha: float) -> UInt8Array:
    """Blend the colours over the photo, at full strength on the borders of classes."""
    strength = round(alpha * 256)
    table = np.concatenate([colours, np.zeros((1, 3), np.uint8)]).astype(np.uint16)  # -1 takes the last row
    thickness = max(1, round(math.sqrt(labels.size) / 700))
    borders = _borders(labels, thickness)
    out = np.empty_like(image)
    step = max(1, 2**18 // labels.shape[1])  # rows at a time, to keep the 16-bit copies small
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
    """List the classes present, largest first, then the remaining ones together and nothing."""
    shares = np.bincount(labels.ravel() + 1, minlength=len(names) + 1) / labels.size
    colours = palette(len(names)).tolist()
    present = sorted((index for index in range(len(names)) if shares[index + 1] > 0), key=lambda i: -shares[i + 1])
    shown = _drawable(names)
    entries = [_Entry(shown[i], percent(shares[i + 1]), tuple(colours[i])) for i in present[:_MOST_ENTRIES]]
    if rest := present[_MOST_ENTRIES:]:
        entries.append(_Entry(f"+{len(rest)} more", percent(sum(shares[i + 1] for i in rest)), None))
    if shares[0] > 0:
        entries.append(_Entry("nothing", percent(shares[0]), None))
    return entries


def _drawable(names: Sequence[str]) -> list[str]:
    """Return names, replaced by "class N" if no font has any of their letters."""
    blank = [not line(name, 16).text and bool(name.strip()) for name in names]
    return [f"class {i} (no font for its name)" if blank[i] else name for i, name in enumerate(names)]


def _draw_legend(entries: list[_Entry], width: int, size: int) -> Image.Image:
    """Draw entries in as many columns of equal width as fit, row by row."""
    if len(entries) > 12:
        size = max(12, round(size * 0.75))
    swatch, margin, space = round(size * 0.95), round(size * 0.9), round(size * 0.5)
    between, row_height, room = round(size * 1.6), round(size * 1.65), width - 2 * margin
    shares = [line(entry.share, size) for entry in entries]
    other = swatch + 2 * space + math.ceil(max(share.length for share in shares))  # width of a cell without the name
    longest = max(math.ceil(line(entry.name, size).length) for entry in entries)
    cell = other + min(longest, size * 11, max(0, room - other))
    columns = max(1, min(len(entries), (room + between) // (cell + between)))
    if columns < len(entries) or columns == 1:  # with several rows, use the whole width for long names
        cell = (room + between) // columns - between
    names = [line(entry.name, size, cell - other) for entry in entries]
    rows = math.ceil(len(entries) / columns)

    legend = Image.new("RGB", (width, rows * row_height + 2 * round(size * 0.6)), PAPER)
    draw = ImageDraw.Draw(legend)
    for number, (entry, name, share) in enumerate(zip(entries, names, shares, strict=True)):
        row, column = divmod(number, columns)
        left = margin + column * (cell + between)
        middle = round(size * 0.6) + row * row_height + row_height // 2
        _paste_swatch(legend, entry.colour, swatch, left, middle - swatch // 2)
        name.draw(draw, left + swatch + space, middle, INK if entry.colour else FAINT)
        share.draw(draw, left + swatch + 2 * space + name.length, middle, FAINT)
    return legend


def _paste_swatch(legend: Image.Image, colour: Colour | None, size: int, left: int, top: int) -> None:
    """Paste a rounded square, or an empty frame for no colour."""
    fine = 4  # draw larger and shrink, for smooth corners
    mask = Image.new("L", (size * fine, size * fine), 0)
    edge = size * fine - 1
    line = 0 if colour else max(fine, round(size * fine * 0.11))
    ImageDraw.Draw(mask).rounded_rectangle(
        (0, 0, edge, edge), radius=size * fine // 4, fill=None if line else 255, outline=255, width=line or 1
    )
    legend.paste(colour or FAINT, (left, top), mask.resize((size, size), Image.Resampling.LANCZOS))


def percent(share: float) -> str:
    """Format a share, 0..1, in per cent for legends."""
    if share < 0.001:
        return "<0.1%"
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"
