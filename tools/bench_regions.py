"""Measure region operators: python -m tools.bench_regions accuracy --benchmark DIR, or cost.

`accuracy` reads the rendered benchmark (python -m tools.render benchmark --out DIR --style twemoji). Class accuracy is
of the 20 nouns without background, of objects in their true masks, and of those that mini-sam finds (IoU 0.5 or more,
the best mask of each). AP is COCO's over masks and PQ counts unnamed pixels as the background, both with the model's
own background words. `cost` times every operator for the same 100 regions beside the bare image pass, in one run: CPU
seconds of one thread, interleaved, medians; crops and drawings once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from densevl.backbones import load_backbone
from densevl.images import read_image
from densevl.pipelines.regions import RegionClassifier, RegionEmbeddings
from densevl.proposals import Proposals, load_proposer
from densevl.regions.operators import OPERATORS
from tools.bench import cpu_seconds, random_clip

WIDE = {"square": "context", "expand": 1.5}
SETTINGS: dict[str, dict[str, Any]] = {
    "pool": {"operator": "pool"},
    "pool, classify_then_pool": {"operator": "pool", "order": "classify_then_pool"},
    "roi": {"operator": "roi"},
    "cls_mask": {"operator": "cls_mask"},
    "cls_mask, every patch touched": {"operator": "cls_mask", "options": {"cls_mask": {"threshold": 0.0}}},
    "cls_mask, by log of the share": {"operator": "cls_mask", "options": {"cls_mask": {"soft": 1.0}}},
    "cls_mask, true CLS unseen": {"operator": "cls_mask", "options": {"cls_mask": {"see_cls": False}}},
    "pool+cls_mask": {"operator": "pool+cls_mask"},
    "pool+cls_mask, wide crops of the most uncertain 15 %": {
        "operator": "pool+cls_mask",
        "second_look": "crop",
        "options": {"crop": WIDE},
    },
    "cls_bias": {"operator": "cls_bias"},
    "crop": {"operator": "crop"},
    "crop, wide: square with context 1.5": {"operator": "crop", "options": {"crop": WIDE}},
    "crop, wide, blurred": {"operator": "crop", "options": {"crop": {**WIDE, "fill": "blur"}}},
    "visual_prompt circle": {"operator": "visual_prompt"},
    "visual_prompt blur": {"operator": "visual_prompt", "options": {"visual_prompt": {"style": "blur"}}},
}
FOUND = 0.5


class Benchmark:
    """The scenes of one folder of the benchmark, with their objects."""

    def __init__(self, root: Path, part: str, count: int) -> None:
        self.root = root / part
        content = json.loads((self.root / "instances.json").read_text())
        self.names = [category["name"] for category in content["categories"]]
        self.images = content["images"][:count]
        self.content = {
            **content,
            "images": self.images,
            "annotations": [a for a in content["annotations"] if a["image_id"] < count],
        }

    def photo(self, number: int) -> np.ndarray:
        """The scene, uint8 RGB."""
        return read_image(self.root / "images" / self.images[number]["file_name"])

    def truth(self, number: int) -> tuple[Proposals, np.ndarray]:
        """The objects of a scene and their classes from 0."""
        own = [a for a in self.content["annotations"] if a["image_id"] == number]
        size = (self.images[number]["height"], self.images[number]["width"])
        masks = Proposals.from_rle([a["segmentation"] for a in own], size)
        return masks, np.array([a["category_id"] - 1 for a in own])

    def panoptic(self, number: int) -> tuple[np.ndarray, dict[int, int]]:
        """The map of segment ids of a scene, and the category of each id, 0 for the background."""
        ids = read_image(self.root / "panoptic" / self.images[number]["file_name"])[..., 0].astype(np.int64)
        masks, classes = self.truth(number)
        owners = {int(np.bincount(ids[masks.mask(i)]).argmax()): int(classes[i]) + 1 for i in range(len(masks))}
        return ids, {int(i): owners.get(int(i), 0) for i in np.unique(ids)}


def overlaps(one: Proposals, other: Proposals) -> np.ndarray:
    """IoU of every pair of masks, (len(one), len(other))."""
    a, b = (masks.masks().reshape(len(masks), -1).astype(np.float32) for masks in (one, other))
    shared = a @ b.T
    return shared / np.maximum(1, a.sum(axis=1)[:, None] + b.sum(axis=1) - shared)


def accuracy(benchmark: Benchmark, proposals: list[Proposals] | None, settings: dict[str, Any]) -> dict[str, float]:
    """The row of one classifier."""
    classify = RegionClassifier("mini", None, **settings)
    plain = {"background": "none"}
    right = total = found_right = found = 0
    seconds = regions = 0.0
    coco: list[dict[str, Any]] = []
    quality = PanopticQuality(len(benchmark.names))
    for number in range(len(benchmark.images)):
        photo = benchmark.photo(number)
        truth, classes = benchmark.truth(number)
        started = time.process_time()
        named = classify(photo, benchmark.names, proposals=truth, **plain)
        seconds += time.process_time() - started
        regions += len(truth)
        right, total = right + int((named.labels == classes).sum()), total + len(classes)
        if proposals is None:
            continue
        embedded: RegionEmbeddings = classify.embed(photo, proposals=proposals[number])
        best = overlaps(truth, proposals[number])
        hit = best.max(axis=1) >= FOUND
        labels = classify.name(embedded, benchmark.names, **plain).labels[best.argmax(axis=1)]
        found_right, found = found_right + int((labels == classes)[hit].sum()), found + int(hit.sum())
        result = classify.name(embedded, benchmark.names)
        coco += result.instances().to_coco(number)
        segments = result.panoptic()
        categories = {segment["id"]: segment["label"] + 1 for segment in segments.segments}
        quality.add(*benchmark.panoptic(number), segments.ids.astype(np.int64), {0: 0, **categories})
    row = {"true masks": 100 * right / total, "ms a region": 1000 * seconds / regions}
    if proposals is not None:
        row |= {"found": 100 * found / total, "mini-sam": 100 * found_right / max(1, found)}
        row |= {"AP": average_precision(benchmark, coco), "PQ": 100 * quality.value()}
    return row


class PanopticQuality:
    """PQ (Kirillov et al., CVPR 2019), category 0 among the others."""

    def __init__(self, categories: int) -> None:
        self.iou = np.zeros(categories + 1)
        self.hits, self.missed, self.extra = (np.zeros(categories + 1) for _ in range(3))

    def add(self, truth: np.ndarray, of_truth: dict[int, int], found: np.ndarray, of_found: dict[int, int]) -> None:
        """Count one image: maps of ids and the category of each id."""
        taken = set()
        for segment, category in of_truth.items():
            inside = truth == segment
            hit = False
            for other, count in zip(*np.unique(found[inside], return_counts=True), strict=True):
                iou = count / (inside.sum() + (found == other).sum() - count)
                if iou > FOUND and of_found[int(other)] == category:
                    hit = True
                    taken.add(int(other))
                    self.iou[category] += iou
            self.hits[category] += hit
            self.missed[category] += not hit
        for other in np.unique(found):
            self.extra[of_found[int(other)]] += int(other) not in taken

    def value(self) -> float:
        """The mean over categories that occur."""
        total = self.hits + self.missed / 2 + self.extra / 2
        return float((self.iou / np.maximum(total, 1e-9))[total > 0].mean())


def average_precision(benchmark: Benchmark, found: list[dict[str, Any]]) -> float:
    """COCO's AP over masks, per cent."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {**benchmark.content, "info": {}}
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(found), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return 100 * float(judge.stats[0])


def cost(arch: str, regions: int, rounds: int, wanted: Sequence[str] = ("",)) -> dict[str, float]:
    """CPU milliseconds of the bare pass and of operators, by the beginning of their names, and their ratio to it."""
    backbone = load_backbone("mini") if arch == "mini" else random_clip(arch)[0]
    side = backbone.preprocess(Image.new("RGB", (8, 8))).shape[-1]
    pixels = torch.randn(1, 3, side, side)
    rng = np.random.default_rng(0)
    corners = rng.integers(0, side * 5 // 7, (regions, 2))
    boxes = np.concatenate([corners, corners + rng.integers(side // 18, side * 2 // 7, (regions, 2))], axis=1)
    masks = Proposals.from_boxes(boxes, (side, side))
    runs = {"bare pass": lambda: backbone.encode_image(pixels)}
    runs |= {
        name: partial(known.run, backbone, pixels, masks)
        for name, known in OPERATORS.items()
        if name.startswith(tuple(wanted))
    }
    slow = [name for name, known in OPERATORS.items() if not known.windows]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            if name in slow and number != 1:
                continue
            spent = cpu_seconds(run)
            if number:  # the first warms up
                times[name].append(spent)
    found = {f"{name}, ms": 1000 * statistics.median(spent) for name, spent in times.items()}
    bare = found["bare pass, ms"]
    return found | {f"{name} / bare pass": found[f"{name}, ms"] / bare for name in times if name != "bare pass"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["accuracy", "cost"])
    parser.add_argument("--benchmark", type=Path, help="folder of `tools.render benchmark`")
    parser.add_argument("--part", default="scenes", choices=["scenes", "scenes2x"])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--operators", help="some of them, by the beginning of their names, commas between")
    parser.add_argument("--no-proposals", action="store_true", help="true masks only")
    parser.add_argument("--arch", default="ViT-B-16", help="of open_clip, with random weights; or mini")
    parser.add_argument("--regions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    wanted = given.operators.split(",") if given.operators else [""]
    if given.what == "cost":
        result: dict[str, Any] = cost(given.arch, given.regions, given.rounds, wanted)
        print("\n".join(f"{name:24} {value:10.2f}" for name, value in result.items()))
    else:
        if given.benchmark is None:
            parser.error("accuracy needs --benchmark DIR")
        benchmark = Benchmark(given.benchmark, given.part, given.scenes)
        proposals = None
        if not given.no_proposals:
            propose = load_proposer("mini-sam")
            proposals = [propose(benchmark.photo(number)) for number in range(len(benchmark.images))]
        result = {}
        for name, settings in SETTINGS.items():
            if any(name.startswith(beginning) for beginning in wanted):
                result[name] = accuracy(benchmark, proposals, settings)
                cells = "  ".join(f"{key} {value:.1f}" for key, value in result[name].items())
                print(f"{name:52} {cells}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
