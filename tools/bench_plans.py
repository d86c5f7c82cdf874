"""mIoU of every window plan at every precision, with "mini": python tools/bench_plans.py --write.

Scenes have a style that training never saw and twice the side of a window; pieces cut from them have sides that are not
multiples of a window. Offsets of the background are chosen as for the model card (`tools.mini.evaluate`), on scenes of
one window.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from densevl.backbones.mini import Mini
from densevl.devices import keep_memory
from densevl.inference import WindowGrid, window_scores
from densevl.kernels import dense_scores
from densevl.pipelines.feeding import PLANS, settle
from densevl.recipes import JoinedProjections, Recipe, get
from tools.mini.data import normalized
from tools.mini.evaluate import CHOICE, SEED, Judge
from tools.recipes.benchmark import best_offset, miou
from tools.render.scenes import Scene
from tools.speed_page import update

RECIPES = ("maskclip_value", "naclip", "clearclip")
SIZES = ((192, 192), (144, 192), (120, 168), (136, 136))
STITCHED = "stitched tiles"
PRECISIONS = ("float32", "int8", "bfloat16")
PART = 20  # scenes at a time


class Plans:
    """Scores scenes by plan and precision."""

    def __init__(self, images: int, seed: int) -> None:
        self.models = {name: Mini().at_precision(name) for name in PRECISIONS}
        model = self.models["float32"]
        self.side = model.protocol.crop or 96
        self.judge = Judge(model, self.side, images, seed)  # type: ignore[arg-type]
        self.choice, self.large = self.judge.scenes(CHOICE), self.judge.scenes("2x sliding")
        self.single = self.judge.scenes("twemoji")

    def read(
        self, scenes: list[Scene], recipe: Recipe, plan: str, precision: str, size: tuple[int, int]
    ) -> tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return tokens of a scene and, per pixel, truth, best noun and lead, as `tools.recipes.benchmark` reads."""
        model, classes = self.models[precision], self.judge.text.classes
        if plan == STITCHED:
            recipe, plan = replace(recipe, stitch=JoinedProjections()), "tiles"
        protocol = settle(plan, model.protocol, recipe)
        windows = WindowGrid.place(*size, protocol.crop, protocol.stride, model.patch_size, protocol.blend)
        found: list[list[np.ndarray]] = [[], [], []]
        for first in range(0, len(scenes), PART):
            part = scenes[first : first + PART]
            pixels = normalized(np.stack([scene.image[: size[0], : size[1]] for scene in part]))
            scores, grid = window_scores(model, pixels, self.judge.text.vectors, windows, recipe=recipe)
            maps = dense_scores(scores, grid.plan(*size))
            best, noun = maps[:, classes >= 0].max(dim=1)
            lead = best - maps[:, classes < 0].amax(dim=1)
            truth = np.stack([scene.objects[: size[0], : size[1]] for scene in part]).ravel() + 1
            for whole, piece in zip(found, (truth, noun.numpy().ravel() + 1, lead.numpy().ravel()), strict=True):
                whole.append(piece)
        tokens = len(windows) * windows.rows.tokens * windows.cols.tokens
        return tokens, (np.concatenate(found[0]), np.concatenate(found[1]), np.concatenate(found[2]))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return rows of a recipe: size, plan, precision, tokens, mIoU in per cent."""
        recipe, one = get(name), (self.side, self.side)
        offset = best_offset(recipe, *self.read(self.choice, recipe, "sliding", "float32", one)[1])
        rows = []
        for size in (one, *SIZES):
            scenes = self.single if size == one else self.large
            for plan in ("sliding",) if size == one else (*PLANS, STITCHED):
                for precision in PRECISIONS if plan in ("sliding", "tiles") else ("float32",):
                    tokens, evidence = self.read(scenes, recipe, plan, precision, size)
                    row = {"recipe": name, "size": size, "plan": plan, "precision": precision, "tokens": tokens}
                    rows.append({**row, "miou": miou(*evidence, offset)})
                    print(json.dumps(rows[-1]), flush=True)
        return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="scenes; of twice the side there are 0.3 as many")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--write", action="store_true", help="update docs/speed.json and docs/speed.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    plans = Plans(given.images, given.seed)
    rows = [row for name in RECIPES for row in plans.rows(name)]
    if given.write:
        update({"quality": {"images": given.images, "seed": given.seed, "rows": rows}})


if __name__ == "__main__":
    main()
