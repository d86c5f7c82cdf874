"""The picture at the top of README.md, all three uses beside each other: python -m tools.readme_picture.

Segmentation of a photo by the best model at hand, regions and an anomaly map by the models of the package.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import densevl

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "uses.jpg"
HEIGHT, GAP, BAR = 360, 12, 34


def main() -> None:
    """Make docs/uses.jpg."""
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
    tiles = [_tile(picture, title) for title, picture in pictures.items()]
    gap = np.full((HEIGHT + BAR, GAP, 3), 255, np.uint8)
    row = np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)
    Image.fromarray(row).save(PICTURE, quality=88)
    print(f"wrote {PICTURE.relative_to(ROOT)}, {row.shape[1]} x {row.shape[0]}, with {segment.backbone.name} and mini")


def _tile(picture: np.ndarray, title: str) -> np.ndarray:
    """One picture at the common height under its title."""
    image = Image.fromarray(picture)
    image = image.resize((max(1, round(image.width * HEIGHT / image.height)), HEIGHT), Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (image.width, HEIGHT + BAR), "white")
    tile.paste(image, (0, BAR))
    ImageDraw.Draw(tile).text((0, 6), title, fill="black", font=ImageFont.load_default(18))
    return np.asarray(tile)


if __name__ == "__main__":
    main()
