"""The pictures of README.md, docs/photo.md and docs/troubleshooting.md: python -m tools.pictures [NAME ...].

uses: docs/uses.jpg, an image and its result for each of three uses. photo: docs/photo.jpg, the photo model where it is
right and where it fails, with the warnings of the results. absent, words, background, size: docs/wrong-NAME.jpg, a
failure beside its solution. They show pictures of demo/large, which `python -m tools.large_pictures` makes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

import densevl
from densevl.drawing import Captions, draw_overlay
from densevl.drawing.captions import EDGE
from densevl.images import read_image
from densevl.proposals import load_proposer

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "demo"
ACROSS, GAP = 1660, 20  # twice the width on pages
TITLE, SMALL, NAME = 32, 25, 30  # sizes of text
INK, FAINT, WRONG, RIGHT = (33, 37, 41), (95, 103, 112), (208, 48, 58), (31, 140, 72)
THINGS = ["bicycle", "pizza", "mushroom", "car", "aeroplane", "guitar", "sailboat", "dog", "umbrella"]
SEEN = {"short_side": 192}  # the size at which `mini` knows the things of demo/large


@dataclass(frozen=True)
class Cell:
    """A picture, uint8 RGB (H, W, 3), with its texts.

    Attributes:
        title: above. said: in small letters below the title. below: warnings, one per line. good: a tick or a cross
            before the title.
    """

    picture: np.ndarray
    title: str = ""
    said: str = ""
    below: Sequence[str] = ()
    good: bool | None = None


def uses() -> None:
    """Draw segmentation of a photo, named masks and an anomaly map, each below its input."""
    photo, scene, wall = (
        DEMO / name for name in ("images/astronaut.jpg", "large/grass.jpg", "large/brick_cracked.jpg")
    )
    segment = densevl.Segmenter("photo+vit28")(photo, ["person", "helmet", "space shuttle"])
    name = densevl.RegionClassifier("mini", protocol=SEEN, proposals=load_proposer("mini-sam", tile=384))
    inspect = densevl.AnomalyDetector("mini", item="brick wall", scoring="dense", size=192)
    inspect.fit(DEMO / "large" / "brick_sound.jpg")
    found = name(scene, THINGS).instances()
    masks = np.concatenate([[-1], found.labels]).astype(np.int16)[found.regions.segment_map()]
    before = [
        Cell(read_image(photo), "Segment a photo", '"person, helmet, space shuttle"'),
        Cell(read_image(scene), "Find things and name them", f'"{", ".join(THINGS[:3])}, ..."'),
        Cell(read_image(wall), "See what is wrong", "against one picture of a sound wall"),
    ]
    after = [
        Cell(_named(segment.image, segment.labels, segment.names, 540)),
        Cell(_named(found.image, masks, found.names, 540)),
        Cell(inspect(wall).overlay()),
    ]
    _save("uses.jpg", [before, after], 1.0)


def photo() -> None:
    """Draw the model of photos where it is right, half right and wrong."""
    segment = densevl.Segmenter("photo+vit")
    asked = {"coffee": ["cup", "spoon"], "astronaut": ["person", "flag"], "rocket": ["rocket", "tower"]}
    cells = []
    for file, words in asked.items():
        found = segment(DEMO / "images" / f"{file}.jpg", words)
        drawn = _named(found.image, found.labels, found.names, 540)
        cells.append(Cell(drawn, f'"{", ".join(words)}"', below=found.warnings))
    _save("photo.jpg", [cells], 0.75, whole=True)


def absent() -> None:
    """Draw a label that is not in the photo, alone and beside the one that is."""
    segment = densevl.Segmenter("photo+vit")
    cells = [_asked(segment, "images/cat.jpg", words, good) for words, good in (("dog", 0), ("dog, cat", 1))]
    _save("wrong-absent.jpg", [cells], 2 / 3)


def words() -> None:
    """Draw a word that means everything, and words for the things."""
    segment = densevl.Segmenter("photo+vit")
    asked = (("object", 0), ("cup, spoon", 1))
    cells = [_asked(segment, "images/coffee.jpg", words, good) for words, good in asked]
    _save("wrong-words.jpg", [cells], 2 / 3)


def background() -> None:
    """Draw labels that must share the whole picture, and the same beside a background."""
    segment = densevl.Segmenter("mini", protocol=SEEN)
    asked = (("none", "none", 0), ('"grass, sky"', "grass, sky", 1), ("scenes", "scenes", 1))
    cells = [
        _asked(segment, "large/grass.jpg", "pizza, car", good, f"--background {shown}", 540, background=rule)
        for shown, rule, good in asked
    ]
    _save("wrong-background.jpg", [cells], 1.0)


def size() -> None:
    """Draw a picture read too small, at the size of the training, and too large."""
    cells = []
    for side, good in ((96, 0), (192, 1), (576, 0)):
        segment = densevl.Segmenter("mini", protocol={"short_side": side})
        cells.append(_asked(segment, "large/grass.jpg", ", ".join(THINGS), good, f"--short-side {side}", 540))
    _save("wrong-size.jpg", [cells], 1.0)


def _asked(segment: Any, image: str, words: str, good: int, title: str = "", side: int = 820, **options: Any) -> Cell:
    found = segment(DEMO / image, words, **options)
    drawn = _named(found.image, found.labels, found.names, side)
    return Cell(drawn, title or f'--labels "{words}"', good=bool(good))


def _named(image: np.ndarray, labels: np.ndarray, names: Sequence[str], side: int) -> np.ndarray:
    """Return an overlay of that width, with names large enough to read on a page."""
    size = (side, round(image.shape[0] * side / image.shape[1]))
    photo = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    soft = [Image.fromarray((labels == index).astype(np.float32)) for index in range(-1, len(names))]
    large = np.stack([np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) for mask in soft])
    finer = (large.argmax(axis=0) - 1).astype(np.int16)
    picture = Image.fromarray(draw_overlay(photo, finer, names, legend=False, captions=False))
    draw = ImageDraw.Draw(picture)
    for text, y, middle, _ in Captions()(finer, names):
        wide = np.ptp(np.flatnonzero((finer == names.index(text.text)).any(axis=0)))
        fonts = [ImageFont.load_default(height) for height in (NAME, NAME - 3, NAME - 6)]
        font = next((font for font in fonts if font.getlength(text.text) <= 0.9 * wide), fonts[-1])
        half = font.getlength(text.text) / 2 + 4
        x = min(max(middle, half), size[0] - half)
        draw.text((x, y), text.text, "white", font, anchor="mm", stroke_width=3, stroke_fill=EDGE)
    return np.asarray(picture)


def _save(file: str, rows: Sequence[Sequence[Cell]], shape: float, *, whole: bool = False) -> None:
    """Write rows of equal cells to a file of docs.

    Args:
        shape: the height of a picture, in widths. whole: show whole pictures, not only as much as fills a cell.
    """
    parts = [_row(row, shape, whole) for row in rows]
    sheet = Image.new("RGB", (ACROSS, sum(part.height for part in parts) + GAP * (len(parts) - 1)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height + GAP
    sheet.save(ROOT / "docs" / file, quality=88)
    print(f"wrote docs/{file}, {sheet.width} x {sheet.height}, {(ROOT / 'docs' / file).stat().st_size / 1000:.0f} kB")


def _row(cells: Sequence[Cell], shape: float, whole: bool) -> Image.Image:
    across = (ACROSS - GAP * (len(cells) - 1)) // len(cells)
    down = round(across * shape)
    said = [[line for text in cell.below for line in wrap(text, int(across / SMALL * 2.05))] for cell in cells]
    above = (TITLE + 16 if any(cell.title for cell in cells) else 0) + (SMALL + 14 if any(c.said for c in cells) else 0)
    sheet = Image.new("RGB", (ACROSS, above + down + round(1.25 * SMALL) * max(map(len, said)) + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for number, cell in enumerate(cells):
        left = number * (across + GAP)
        start = left if cell.good is None else _mark(draw, cell.good, left, TITLE // 2 + 2)
        draw.text((start, TITLE // 2 + 2), cell.title, INK, ImageFont.load_default(TITLE), anchor="lm")
        draw.text((left, TITLE + 12 + SMALL // 2), cell.said, FAINT, ImageFont.load_default(SMALL), anchor="lm")
        sheet.paste(_fitted(cell.picture, across, down, whole), (left, above))
        for index, line in enumerate(said[number]):
            top = above + down + 10 + round(1.25 * SMALL) * index
            draw.text((left, top), line, FAINT, ImageFont.load_default(SMALL))
    return sheet


def _mark(draw: ImageDraw.ImageDraw, good: bool, left: int, middle: int) -> int:
    """Draw a tick or a cross, and return where the text behind it starts."""
    size, line = 11, 5
    if good:
        points = [(left + 2, middle), (left + 9, middle + size - 2), (left + 26, middle - size)]
        draw.line(points, RIGHT, line, joint="curve")
    else:
        for sign in (-1, 1):
            draw.line([(left + 3, middle - sign * size), (left + 3 + 2 * size, middle + sign * size)], WRONG, line)
    return left + 38


def _fitted(picture: np.ndarray, across: int, down: int, whole: bool) -> Image.Image:
    """Place the picture in the middle of a cell, or fill the cell with its middle."""
    image = Image.fromarray(picture)
    if whole:
        return ImageOps.pad(image, (across, down), Image.Resampling.LANCZOS, (241, 243, 245))
    return ImageOps.fit(image, (across, down), Image.Resampling.LANCZOS)


PICTURES: dict[str, Callable[[], None]] = {
    "uses": uses,
    "photo": photo,
    "absent": absent,
    "words": words,
    "background": background,
    "size": size,
}


def main() -> None:
    """Make the named pictures, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    for name in parser.parse_args().names or PICTURES:
        PICTURES[name]()


if __name__ == "__main__":
    main()
