"""The pictures of README.md and docs/models.md: python -m tools.readme_picture.

docs/uses.jpg, all three uses beside each other: segmentation of a photo by the best model at hand, regions and an
anomaly map by the models of the package. docs/photo.jpg, the model of photos where it is right and where it fails,
with the warnings that came with the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import densevl

ROOT = Path(__file__).parents[1]
HEIGHT, GAP, BAR = 360, 12, 34
SMALL, LINE, LINES = 12, 16, 8  # of the text under a picture: size, height of a line, lines
ASKED = {"coffee": ["cup", "spoon"], "astronaut": ["person", "flag"], "rocket": ["rocket", "tower"]}


def main() -> None:
    """Make docs/uses.jpg and docs/photo.jpg."""
    images = ROOT / "demo"
    segment = densevl.Segmenter("auto")
    name = densevl.RegionClassifier("mini")
    inspect = densevl.AnomalyDetector("mini", item="tile")
    words = ["penguin", "bicycle", "aeroplane", "sunflower", "mushroom", "football"]
    pictures = {
        'Segmentation: "cat, dog"': segment(images / "images" / "cat.jpg", ["cat", "dog"]).overlay(),
        "Masks with names": name(images / "scenes" / "wood.png", words).instances().overlay(),
        "What is wrong with a tile": inspect(images / "surfaces" / "tiles_damaged.png").overlay(),
    }
    _save("uses.jpg", {title: (picture, "") for title, picture in pictures.items()})
    photo = densevl.Segmenter("photo+vit")
    results = {", ".join(asked): photo(images / "images" / f"{file}.jpg", asked) for file, asked in ASKED.items()}
    _save("photo.jpg", {title: (found.overlay(), "\n".join(found.warnings)) for title, found in results.items()})


def _save(file: str, pictures: Mapping[str, tuple[np.ndarray, str]]) -> None:
    """Pictures and what is said of them, by title, beside each other, to a file of docs."""
    lines = LINES if any(said for _, said in pictures.values()) else 0
    tiles = [_tile(picture, title, said, lines) for title, (picture, said) in pictures.items()]
    gap = np.full((len(tiles[0]), GAP, 3), 255, np.uint8)
    row = np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)
    Image.fromarray(row).save(ROOT / "docs" / file, quality=88)
    print(f"wrote docs/{file}, {row.shape[1]} x {row.shape[0]}")


def _tile(picture: np.ndarray, title: str, said: str, lines: int) -> np.ndarray:
    """One picture at the common height under its title, and what is said of it below."""
    image = Image.fromarray(picture)
    image = image.resize((max(1, round(image.width * HEIGHT / image.height)), HEIGHT), Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (image.width, BAR + HEIGHT + lines * LINE), "white")
    tile.paste(image, (0, BAR))
    draw = ImageDraw.Draw(tile)
    draw.text((0, 6), title, fill="black", font=ImageFont.load_default(18))
    font = ImageFont.load_default(SMALL)
    across = int(image.width / draw.textlength("taken for each other", font=font) * 18)
    rows = [row for warning in said.splitlines() for row in wrap(warning, across)]
    for index, row in enumerate(rows):
        draw.text((0, BAR + HEIGHT + 4 + index * LINE), row, fill="black", font=font)
    return np.asarray(tile)


if __name__ == "__main__":
    main()
