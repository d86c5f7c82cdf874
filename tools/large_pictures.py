"""The pictures of demo/large: python -m tools.large_pictures. Needs npm for the icons, see tools/render/README.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tools.render.nouns import all_nouns
from tools.render.scenes import SceneMaker
from tools.render.sprites import SpriteBook
from tools.render.surfaces import SurfaceMaker
from tools.render.textures import all_textures

LARGE = Path(__file__).parents[1] / "demo" / "large"
THINGS = "aeroplane, pizza, mushroom, dog, car, guitar, sailboat, umbrella, bicycle"
SIDE = 576  # three times that of demo/scenes


def main() -> None:
    """Draw nine things on grass, and a brick wall without and with a crack."""
    nouns = [noun.name for noun in all_nouns()]
    textures = [texture.name for texture in all_textures()]
    styles = SpriteBook.load(["fluent", "noto"], 192)
    maker = SceneMaker(SIDE // 2, styles=styles, seed=202680, held_out=None, augment=False, tiles=2)
    things = [nouns.index(name) for name in THINGS.split(", ")]
    _save("grass", maker.of(things, textures.index("grass")).image)
    wall = SurfaceMaker(SIDE, seed=202692)
    for name, damage in (("brick_sound", None), ("brick_cracked", "crack")):
        _save(name, wall.of(textures.index("brick wall"), damage).image)


def _save(name: str, image: np.ndarray) -> None:
    Image.fromarray(image).save(LARGE / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main()
