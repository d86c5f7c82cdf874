"""Measure "mini": python -m tools.mini.evaluate --weights FILE --json FILE [--markdown FILE].

Classes are the 20 nouns of the rendered benchmark and background. The background scores as the best of the texture
names, plus an offset that is chosen for each recipe on scenes in the training styles and then used everywhere.
All figures are per cent.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from densevl.backbones.mini import Mini
from densevl.inference import slide
from densevl.vocabulary import Background, LabelSet
from densevl.vocabulary.text_classifier import TextClassifier
from tools.mini.anomaly import evaluate_anomaly
from tools.mini.data import normalized
from tools.mini.metrics import confusion, mean_iou
from tools.mini.prompts import benchmark_names
from tools.render.art import TRAIN_STYLES
from tools.render.nouns import BENCHMARK_NOUNS
from tools.render.scenes import Scene, SceneMaker

SEED = 900_000
OFFSETS = np.arange(-1, 1.001, 0.02)
BATCH = 20
RECIPES = ("vanilla", "maskclip", "maskclip_value", "clip_surgery", "gem", "sclip", "clearclip", "naclip")
"""Those of the model card: they need the model's own weights and nothing else."""


@dataclass(frozen=True)
class Set:
    """Scenes of a test set: styles, which pairs of nouns and backgrounds, side in tiles, windows or whole image."""

    styles: tuple[str, ...]
    held_out: bool | None = None
    tiles: int = 1
    whole: bool = False
    share: float = 1.0  # of the scenes that `--scenes` asks for


CHOICE = "choice"  # the offset of each recipe is chosen here
SETS = {
    CHOICE: Set(TRAIN_STYLES, share=0.5),
    "train": Set(TRAIN_STYLES),
    "twemoji": Set(("twemoji",)),
    "openmoji": Set(("openmoji",)),
    "seen pairs": Set(("twemoji",), held_out=False),
    "held-out pairs": Set(("twemoji",), held_out=True),
    "2x sliding": Set(("twemoji",), tiles=2, share=0.3),
    "2x whole": Set(("twemoji",), tiles=2, share=0.3, whole=True),
}


class Judge:
    """Score scenes with one model; the vocabulary is embedded once."""

    def __init__(self, model: Mini, size: int, scenes: int, seed: int) -> None:
        self.model, self.size, self.count, self.seed = model, size, scenes, seed
        policy = Background.parse(model.background)
        self.text = TextClassifier(model, use_cache=False).encode(LabelSet.parse(benchmark_names()), policy)

    def maker(self, part: Set, offset: int) -> SceneMaker:
        """Return a maker of scenes with two or three objects that are only turned a little."""
        return SceneMaker(
            self.size,
            styles=part.styles,
            nouns=range(BENCHMARK_NOUNS),
            seed=self.seed + offset,
            held_out=part.held_out,
            objects=(2, 3),
            augment=False,
            tiles=part.tiles,
        )

    def scenes(self, name: str) -> list[Scene]:
        """Return the scenes of a set; "2x sliding" and "2x whole" match, pairs are compared at equal object counts."""
        part = SETS[name]
        maker = self.maker(part, 10 * (name == CHOICE) + part.tiles)
        count = max(2, round(self.count * part.share))
        if part.held_out is None:
            return [maker.scene() for _ in range(count)]
        return [maker.of(*maker.choose(2 + i % 2)) for i in range(count)]

    def top1(self, styles: tuple[str, ...], each: int) -> float:
        """Return the share of single-object scenes whose noun is the best of the 20."""
        maker = self.maker(Set(styles), 5)
        scenes = [maker.single(noun) for noun in range(BENCHMARK_NOUNS) for _ in range(each)]
        nouns_TD = self.text.vectors[self.text.classes >= 0]
        hits = 0
        for part in _parts(scenes):
            image_BD = F.normalize(self.model.encode_image(_pixels(part)), dim=-1)
            best = self.text.classes[self.text.classes >= 0][(image_BD @ nouns_TD.T).argmax(dim=1)]
            hits += int((best == torch.tensor([scene.nouns[0] for scene in part])).sum())
        return 100 * hits / len(scenes)

    def read(self, scenes: list[Scene], recipe: str, whole: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return for every pixel truth (0 background), best noun from 1, and its lead over the background, flat."""
        crop, stride = None if whole else self.size, self.size // 2
        truths, nouns, leads = [], [], []
        for part in _parts(scenes):
            scores = slide(
                self.model,
                _pixels(part),
                self.text.vectors,
                recipe=recipe,
                crop=crop,
                stride=stride,
            )
            best, noun = scores[:, self.text.classes >= 0].max(dim=1)
            lead = best - scores[:, self.text.classes < 0].amax(dim=1)
            truths.append(np.stack([scene.objects for scene in part]).ravel() + 1)
            nouns.append(noun.numpy().astype(np.int16).ravel() + 1)
            leads.append(lead.numpy().ravel())
        return np.concatenate(truths), np.concatenate(nouns), np.concatenate(leads)

    def offset(self, recipe: str) -> float:
        """Return the background offset of a recipe: the best on scenes in the training styles."""
        return _best_offset(*self.read(self.scenes(CHOICE), recipe, False))


def semantic(judge: Judge, names: Sequence[str] = RECIPES) -> dict[str, dict[str, float]]:
    """mIoU by recipe and set; "offset" is the chosen one, "twemoji at 0" is without it, "foreground" knows objects."""
    table: dict[str, dict[str, float]] = {name: {} for name in names}
    for name, part in SETS.items():
        scenes = judge.scenes(name)
        for recipe, row in table.items():
            truth, noun, lead = judge.read(scenes, recipe, part.whole)
            if name == CHOICE:
                row["offset"] = _best_offset(truth, noun, lead)
                continue
            row[name] = _miou(truth, noun, lead, row["offset"])
            if name == "twemoji":
                row["twemoji at 0"] = _miou(truth, noun, lead, 0.0)
                row["foreground"] = mean_iou(confusion(truth[truth > 0], noun[truth > 0], BENCHMARK_NOUNS + 1))
    return table


def _best_offset(truth: np.ndarray, noun: np.ndarray, lead: np.ndarray) -> float:
    return float(max(OFFSETS, key=lambda t: _miou(truth, noun, lead, t)))


def _miou(truth: np.ndarray, noun: np.ndarray, lead: np.ndarray, offset: float) -> float:
    return mean_iou(confusion(truth, np.where(lead > offset, noun, 0), BENCHMARK_NOUNS + 1))


def _parts(scenes: list[Scene]) -> Iterator[list[Scene]]:
    for first in range(0, len(scenes), BATCH):
        yield scenes[first : first + BATCH]


def _pixels(scenes: list[Scene]) -> torch.Tensor:
    return normalized(np.stack([scene.image for scene in scenes]))


def evaluate(
    weights: Path | None, *, scenes: int = 200, seed: int = SEED, images: int = 4, names: Sequence[str] = RECIPES
) -> dict[str, Any]:
    """Measure everything.

    Args:
        weights: a file of `tools.mini.export`, None for the shipped one.
        scenes: scenes per set; the double-size sets have fewer.
        seed: of all scenes; another seed shows the noise.
        images: damaged surfaces per material and kind.
        names: recipes to compare.
    """
    model = Mini(weights)
    judge = Judge(model, model.protocol.crop or 96, scenes, seed)
    styles = {"train": TRAIN_STYLES, "twemoji": ("twemoji",), "openmoji": ("openmoji",)}
    return {
        "seed": seed,
        "scenes": scenes,
        "top1": {name: judge.top1(style, max(1, scenes // 10)) for name, style in styles.items()},
        "miou": semantic(judge, names),
        "anomaly": evaluate_anomaly(model, images=images, seed=seed),
    }


def markdown(result: dict[str, Any]) -> str:
    """Format the result as tables."""
    lines = [f"Seed {result['seed']}, {result['scenes']} scenes a set.", ""]
    blocks = [("top-1 of 20", {"image": result["top1"]}), ("mIoU", result["miou"]), ("AUROC", result["anomaly"])]
    for title, rows in blocks:
        columns = list(next(iter(rows.values())))
        lines += [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for name, row in rows.items():
            cells = (f"{row[c]:.2f}" if c == "offset" else f"{row[c]:.1f}" for c in columns)
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="a file of tools.mini.export; default: the shipped one")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1, help="repeat with so many seeds, to show the noise")
    parser.add_argument("--images", type=int, default=4, help="damaged surfaces per material and kind")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="default: those of the model card")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    results = [
        evaluate(given.weights, scenes=given.scenes, seed=SEED + 1000 * i, images=given.images, names=given.recipes)
        for i in range(given.seeds)
    ]
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(markdown(result) for result in results)
    if given.markdown:
        given.markdown.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
