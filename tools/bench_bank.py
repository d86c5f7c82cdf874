"""Gain of a bank on rendered scenes, by its size: python -m tools.bench_bank [--images 200] [--sizes 50,200,800].

Test scenes are those of the model card, in the style that `mini` never saw. The banks are other scenes: of that style,
of the training styles, and of that style with things outside the 20 labels. `mini` gives the values, mini-sam the
segments, a proxy the keys; labels of the bank's scenes are not used.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densevl import RegionClassifier, Segmenter, load_proxy
from densevl.backbones.mini import Mini
from densevl.devices import keep_memory
from densevl.images import encode_png
from densevl.pipelines.regions.banking import BankBuilder
from densevl.proposals import Proposals, load_proposer
from densevl.regions.bank import Bank
from tools.mini.evaluate import SEED, SETS, Judge
from tools.mini.metrics import confusion, mean_iou
from tools.mini.prompts import benchmark_names
from tools.render.art import TRAIN_STYLES
from tools.render.nouns import BENCHMARK_NOUNS, all_nouns
from tools.render.scenes import Scene, SceneMaker

TEST = "twemoji"
BANKS = {
    "other scenes of that style": (SETS[TEST].styles, range(BENCHMARK_NOUNS)),
    "styles of training": (TRAIN_STYLES, range(BENCHMARK_NOUNS)),
    "that style, other things": (SETS[TEST].styles, range(BENCHMARK_NOUNS, len(all_nouns()))),
}


def bank_of(folder: Path, styles: tuple[str, ...], nouns: range, count: int, keys: str) -> Bank:
    """Build a bank of `count` scenes with two or three things."""
    maker = SceneMaker(96, styles=styles, nouns=nouns, seed=SEED + 1000, objects=(2, 3), augment=False)
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for number in range(count):
        (photos / f"{number:05d}.png").write_bytes(encode_png(maker.scene().image))
    builder = BankBuilder(folder / "bank", RegionClassifier("mini", "pool"), load_proxy(keys))
    builder.build(photos)
    assert builder.bank is not None
    return builder.bank


mini_sam = cache(lambda: load_proposer("mini-sam"))


@cache
def _masks(pixels: bytes, side: int) -> Proposals:
    return mini_sam()(np.frombuffer(pixels, np.uint8).reshape(side, -1, 3))


def found_once(image: np.ndarray) -> Proposals:
    """Find mini-sam's masks once for each test scene: they take most of the time."""
    return _masks(image.tobytes(), len(image))


def score(scenes: list[Scene], names: tuple[str, ...], **settings: Any) -> float:
    """Return the mIoU in per cent of a `Segmenter` with some settings."""
    segment = Segmenter("mini", proposals=found_once, **settings)
    total = np.zeros((BENCHMARK_NOUNS + 1, BENCHMARK_NOUNS + 1), np.int64)
    for scene in scenes:
        found = segment(scene.image, names)
        total += confusion(scene.objects + 1, found.labels.astype(np.int64) + 1, BENCHMARK_NOUNS + 1)
    return mean_iou(total)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="test scenes")
    parser.add_argument("--sizes", default="50,200,800", help="scenes of a bank")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--neighbours", default="20")
    parser.add_argument("--refine", default="none")
    parser.add_argument("--keys", default="efficientnet-lite0", help="the proxy of the banks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    judge = Judge(Mini(), 96, given.images, SEED)
    scenes, names = judge.scenes(TEST), benchmark_names()
    print(f"no bank: {score(scenes, names, refine=given.refine):.1f}", flush=True)
    sizes = [int(size) for size in given.sizes.split(",")]
    with tempfile.TemporaryDirectory() as root:
        for title, (styles, nouns) in BANKS.items():
            bank = bank_of(Path(root, title), styles, nouns, max(sizes), given.keys)
            for size in sizes:
                part = Path(root, f"{title} {size}")
                shutil.copytree(bank.path, part)
                few = Bank.load(part)
                few = few.without([photo.path for photo in few.photos[size:]])
                for count in given.neighbours.split(","):
                    how = {"bank": few, "bank_share": given.share, "neighbours": int(count), "refine": given.refine}
                    found = score(scenes, names, **how)
                    print(f"{title}, {size} scenes, {len(few)} regions, {count} neighbours: {found:.1f}", flush=True)


if __name__ == "__main__":
    main()
