"""The pictures of docs/explain.md: python -m tools.explain_pictures [--out docs]."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from densevl import Explainer

SCENE = Path(__file__).parents[1] / "demo" / "scenes" / "wood.png"
WIDTH, QUALITY = 900, 80
AGAINST = "pizza,bicycle,mushroom"


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    explain = Explainer("mini")
    found = {
        "patches": explain(SCENE, "penguin", against=AGAINST),
        "heads": explain.heads(SCENE, "penguin", against=AGAINST, blocks=-2),
        "pairs": explain.pairs(SCENE, "a mushroom and a pizza", text_block=2),
    }
    for name, own in found.items():
        picture = Image.fromarray(np.ascontiguousarray(own.overlay()))
        picture.thumbnail((WIDTH, 10 * WIDTH))
        picture.save(out / f"explain-{name}.jpg", quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
