"""Every recipe on the rendered benchmark with "mini": python -m tools.recipes.benchmark [--images 200] [--threads 1].

Scenes, vocabulary and the background's offset for each recipe are those of `tools.mini.evaluate`, so its figures appear
here too. Recipes that borrow do so from "mini-sam": features, attention, and its automatic masks as regions; and again
from a model that knows the true outlines, which separates the effect of the recipe from that of the proxy.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from densevl.backbones import Backbone, mini
from densevl.backbones.mini import Mini
from densevl.errors import RecipeError
from densevl.inference import slide
from densevl.proposals.sam import mini_sam
from densevl.recipes import Recipe, get, names
from tools.mini.data import normalized
from tools.mini.evaluate import BATCH, CHOICE, OFFSETS, SEED, Judge
from tools.mini.metrics import confusion, mean_iou
from tools.recipes.borrowed import Lender, MiniSam, Truth, borrows
from tools.recipes.table import markdown
from tools.render.nouns import BENCHMARK_NOUNS
from tools.render.scenes import Scene

HELD_OUT, LARGE = "twemoji", "2x sliding"
"""The reported sets: scenes of one window, and of twice the side, in a style that training never saw."""
TIMED = 30
"""Number of scenes for the median time."""


class Bench:
    """Measures recipes one after the other on the same scenes."""

    def __init__(self, model: Backbone, images: int, seed: int = SEED, lender: Lender | None = None) -> None:
        self.model, self.lender = model, lender or MiniSam()
        self.judge = Judge(model, model.protocol.crop or 96, images, seed)  # type: ignore[arg-type]
        self.sets = {part: self.judge.scenes(part) for part in (CHOICE, HELD_OUT, LARGE)}

    def measure(self, name: str) -> dict[str, Any]:
        """One row: "offset", "miou", "large" (per cent), "ms"; if it borrows also "truth" and the hash of mini-sam.

        Or "refused": why it cannot run.
        """
        recipe = get(name)
        try:
            offset, held_out, large = self.judged(recipe, self.lender, (HELD_OUT, LARGE))
            row = {"offset": offset, "miou": held_out, "large": large, "ms": self.milliseconds(recipe)}
            if borrows(recipe):
                row["truth"] = self.judged(recipe, Truth(), (HELD_OUT,))[1]
            rounded: dict[str, Any] = {key: round(value, 3) for key, value in row.items()}
            return rounded | ({"mini-sam": mini_sam.SHA256} if borrows(recipe) else {})
        except RecipeError as error:
            return {"refused": str(error)}

    def judged(self, recipe: Recipe, lender: Lender, parts: tuple[str, ...]) -> tuple[float, ...]:
        """Choose the background's offset of a recipe; also return mIoU in per cent of some sets."""
        offset = best_offset(recipe, *self.read(recipe, CHOICE, lender))
        return offset, *(miou(*self.read(recipe, part, lender), offset) for part in parts)

    def read(self, recipe: Recipe, part: str, lender: Lender) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return for every pixel truth (0 background), best noun from 1, and its lead over the background, flat."""
        classes = self.judge.text.classes
        truths, nouns, leads = [], [], []
        for first in range(0, len(self.sets[part]), BATCH):
            scenes = self.sets[part][first : first + BATCH]
            scores = self._scores(recipe, scenes, lender)
            best, noun = scores[:, classes >= 0].max(dim=1)
            leads.append((best - scores[:, classes < 0].amax(dim=1)).numpy().ravel())
            nouns.append(noun.numpy().astype(np.int16).ravel() + 1)
            truths.append(np.stack([scene.objects for scene in scenes]).ravel() + 1)
        return np.concatenate(truths), np.concatenate(nouns), np.concatenate(leads)

    def milliseconds(self, recipe: Recipe) -> float:
        """Return median CPU time of one scene from pixels to score maps, with the proxy but without mask proposals."""
        spent = []
        for scene in self.sets[HELD_OUT][:TIMED]:
            self.lender.hints(recipe, [scene])
            begun = time.process_time()
            self._scores(recipe, [scene], self.lender)
            spent.append(1000 * (time.process_time() - begun))
        return float(np.median(spent))

    def _scores(self, recipe: Recipe, scenes: list[Scene], lender: Lender) -> torch.Tensor:
        pixels, protocol = normalized(np.stack([scene.image for scene in scenes])), self.model.protocol
        crop, hints = protocol.crop, lender.hints(recipe, scenes)
        stride = (crop or 96) // 2
        return slide(self.model, pixels, self.judge.text.vectors, recipe=recipe, crop=crop, stride=stride, hints=hints)


def best_offset(recipe: Recipe, truth: np.ndarray, noun: np.ndarray, lead: np.ndarray) -> float:
    """Return the lead a noun needs over the background, by mIoU: of `OFFSETS` for cosines, else of quantiles."""
    cosines = recipe.readout.cosine and recipe.spread is None
    offsets = OFFSETS if cosines else np.quantile(lead, np.linspace(0, 1, len(OFFSETS)))
    return float(max(offsets, key=lambda offset: miou(truth, noun, lead, offset)))


def miou(truth: np.ndarray, noun: np.ndarray, lead: np.ndarray, offset: float) -> float:
    """Return mIoU in per cent, with background where the lead does not exceed the offset."""
    return mean_iou(confusion(truth, np.where(lead > offset, noun, 0), BENCHMARK_NOUNS + 1))


def run(bench: Bench, wanted: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return rows by recipe; each is also printed as soon as it is ready."""
    rows = {}
    for name in wanted:
        rows[name] = bench.measure(name)
        print(f"{name:22} {rows[name]}", flush=True)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="scenes a set; half for the offset, 0.3 of twice side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--recipes", type=lambda words: words.split(","), default=names(), help="NAME,NAME; all")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path, help="rows of the recipes measured replace those the file has")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cv2.setNumThreads(1)
    result: dict[str, Any] = {"seed": given.seed, "images": given.images, "threads": given.threads}
    result["mini"] = mini.SHA256
    rows = run(Bench(Mini(), given.images, given.seed), [get(name).name for name in given.recipes])
    kept = json.loads(given.json.read_text(encoding="utf-8")) if given.json and given.json.exists() else {}
    if kept and {key: kept.get(key) for key in result} != result:
        raise SystemExit(f"{given.json} was measured with other settings; name another file")
    result["recipes"] = {**kept.get("recipes", {}), **rows}
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if given.markdown:
        given.markdown.write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
