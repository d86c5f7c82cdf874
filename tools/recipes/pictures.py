"""Write docs/recipes.jpg, the effect of each recipe on one scene: python -m tools.recipes.pictures [--scene 0].

A scene of twice the side from `tools.recipes.benchmark`, in a style that `mini` never saw. All 20 nouns compete, and
the lead that a noun needs over the background is the one measured for the recipe (docs/recipes.json). Borrowed inputs
come from `mini-sam`. Titles have the recipe's mIoU over all scenes of that size.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from densevl.backbones.mini import Mini
from densevl.drawing import contact_sheet, encode_sheet
from densevl.drawing.overlays import draw_overlay
from densevl.recipes import get
from tools.mini.evaluate import benchmark_names
from tools.recipes.benchmark import LARGE, Bench
from tools.recipes.page import DOCS, MEASURED

COLUMNS, WIDTH, LETTERS, SCENES = 5, 1660, 24, 20


def main() -> None:
    """Segment the scene by every measured recipe, and tile the overlays, best first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scene", type=int, default=0, help=f"which of {SCENES}")
    chosen = parser.parse_args().scene
    bench = Bench(Mini(), SCENES)
    scene = bench.sets[LARGE][chosen]
    bench.sets[LARGE] = [scene]
    rows = {name: row for name, row in json.loads(MEASURED.read_text())["recipes"].items() if "miou" in row}
    cells, titles = [scene.image, _drawn(scene.image, scene.objects)], ["scene", "truth"]
    for name in sorted(rows, key=lambda name: -rows[name]["large"]):
        _, noun, lead = bench.read(get(name), LARGE, bench.lender)
        found = np.where(lead > rows[name]["offset"], noun - 1, -1).reshape(scene.objects.shape)
        cells.append(_drawn(scene.image, found))
        titles.append(f"{name}, {rows[name]['large']:.0f}")
    (DOCS / "recipes.jpg").write_bytes(encode_sheet(contact_sheet(cells, titles, COLUMNS, WIDTH, letters=LETTERS)))


def _drawn(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    names = benchmark_names()
    return draw_overlay(image, labels.astype(np.int16), names, alpha=0.7, legend=False, captions=False)


if __name__ == "__main__":
    main()
