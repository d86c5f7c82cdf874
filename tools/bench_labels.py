"""Measure pictures as labels, and backgrounds, on rendered scenes: python -m tools.bench_labels [--images 60].

Scenes are those of the model card, in the style that `mini` never saw. A class by picture has one example, a thing in
another scene. Only pixels of things count; with a background, all pixels do.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from densevl import Segmenter
from densevl.backbones.mini import Mini
from densevl.devices import keep_memory
from densevl.inference import kinds
from densevl.pipelines.segmentation import segmenter
from densevl.vocabulary import Example
from tools.mini.evaluate import SEED, SETS, Judge
from tools.mini.metrics import confusion, mean_iou
from tools.mini.prompts import benchmark_names
from tools.render.nouns import BENCHMARK_NOUNS
from tools.render.scenes import Scene, SceneMaker

TEST, LEAST = "twemoji", 200  # pixels of an example


def examples() -> dict[int, Example]:
    """Return one thing of each class, by its mask in a scene of its own."""
    styles, nouns = SETS[TEST].styles, range(BENCHMARK_NOUNS)
    maker = SceneMaker(96, styles=styles, nouns=nouns, seed=SEED + 77, objects=(2, 3), augment=False)
    found: dict[int, Example] = {}
    while len(found) < BENCHMARK_NOUNS:
        scene = maker.scene()
        for noun in set(scene.nouns) - set(found):
            if (mask := scene.objects == noun).sum() > LEAST:
                found[noun] = Example(scene.image, mask=mask)
    return found


def score(scenes: list[Scene], labels: Any, *, everything: bool = False, **settings: Any) -> float:
    """Return mIoU in per cent over the classes."""
    segment = Segmenter("mini", refine="none", **settings)
    total = np.zeros((BENCHMARK_NOUNS + 1, BENCHMARK_NOUNS + 1), np.int64)
    for scene in scenes:
        counted = np.ones(scene.objects.shape, bool) if everything else scene.objects >= 0
        found = segment(scene.image, labels).labels.astype(np.int64)
        total += confusion(scene.objects[counted] + 1, found[counted] + 1, BENCHMARK_NOUNS + 1)
    return mean_iou(total if everything else total[1:, 1:])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=60, help="test scenes")
    parser.add_argument("--backgrounds", default="none;auto;scenes", help="policies, ';' between")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    scenes, names, shown = Judge(Mini(), 96, given.images, SEED).scenes(TEST), benchmark_names(), examples()
    for background in given.backgrounds.split(";"):
        found = score(scenes, names, background=background, everything=True)
        print(f"words, background {background}, all pixels: {found:.1f}", flush=True)
    halves = [{name: shown[at] if at % 2 == half else name for at, name in enumerate(names)} for half in (0, 1)]
    ways = {"words": names, "pictures": {name: shown[at] for at, name in enumerate(names)}}
    for title, labels in ways.items():
        print(f"{title}: {score(scenes, labels, background='none'):.1f}", flush=True)
    own = kinds.levelled
    for title, scale in (("on one scale", own), ("raw", lambda scores, text: scores)):
        segmenter.levelled = scale  # type: ignore[attr-defined]
        found = [score(scenes, labels, background="none") for labels in halves]
        print(f"half words, half pictures, {title}: {found[0]:.1f} and {found[1]:.1f}", flush=True)


if __name__ == "__main__":
    main()
