"""Measure region operators: python -m tools.bench_regions accuracy --benchmark DIR, or discovery, or cost.

`accuracy` reads the rendered benchmark (python -m tools.render benchmark --out DIR --style twemoji). Class accuracy is
that of the 20 nouns without background, for objects in their true masks and for those that mini-sam finds (IoU 0.5 or
more, best mask of each). AP is COCO's over masks, and PQ counts unnamed pixels as background; both use the model's own
background words. `discovery` names the same scenes without labels, by the package's word list, and counts the found
objects with the right word. `cost` times every operator for the same 100 regions beside the bare image pass, in one
run: CPU seconds of one thread, interleaved, medians; crops and drawings once.
"""

from __future__ import annotations

import argparse
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
from densevl.benchmarking.clock import seconds as seconds_of
from densevl.benchmarking.random_model import random_model
from densevl.devices import keep_memory
from densevl.evaluation.metrics.average_precision import average_precision
from densevl.evaluation.metrics.panoptic import Segment, panoptic_counts, panoptic_quality
from densevl.images import read_image
from densevl.pipelines.regions.classifier import RegionClassifier, RegionEmbeddings
from densevl.proposals import Proposals, load_proposer
from densevl.regions.operators.names import OPERATORS
from densevl.vocabulary.nouns import nouns

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
    "balanced": {"operator": "balanced"},
    "balanced, nothing taken out": {"operator": "balanced", "options": {"balanced": {"spread": 1e-3}}},
    "crop": {"operator": "crop"},
    "crop, wide: square with context 1.5": {"operator": "crop", "options": {"crop": WIDE}},
    "crop, wide, blurred": {"operator": "crop", "options": {"crop": {**WIDE, "fill": "blur"}}},
    "visual_prompt circle": {"operator": "visual_prompt"},
    "visual_prompt blur": {"operator": "visual_prompt", "options": {"visual_prompt": {"style": "blur"}}},
}
FOUND = 0.5


class Benchmark:
    """Return the scenes of one folder of the benchmark, with their objects."""

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
        """Return the scene, uint8 RGB."""
        return read_image(self.root / "images" / self.images[number]["file_name"])

    def truth(self, number: int) -> tuple[Proposals, np.ndarray]:
        """Return the objects of a scene and their classes from 0."""
        own = [a for a in self.content["annotations"] if a["image_id"] == number]
        size = (self.images[number]["height"], self.images[number]["width"])
        masks = Proposals.from_rle([a["segmentation"] for a in own], size)
        return masks, np.array([a["category_id"] - 1 for a in own])

    def panoptic(self, number: int) -> tuple[np.ndarray, dict[int, int]]:
        """Return the map of segment ids of a scene, and the category of each id, 0 for the background."""
        ids = read_image(self.root / "panoptic" / self.images[number]["file_name"])[..., 0].astype(np.int64)
        masks, classes = self.truth(number)
        owners = {int(np.bincount(ids[masks.mask(i)]).argmax()): int(classes[i]) + 1 for i in range(len(masks))}
        return ids, {int(i): owners.get(int(i), 0) for i in np.unique(ids)}


def segments(ids: np.ndarray, categories: dict[int, int]) -> tuple[np.ndarray, list[Segment]]:
    """Return a map without void: pixels of no segment, 0, become one segment of the background, category 0."""
    here = np.unique(ids).tolist()
    return ids + 1, [Segment(number + 1, categories.get(number, 0)) for number in here]


def overlaps(one: Proposals, other: Proposals) -> np.ndarray:
    """Return the IoU of every pair of masks, (len(one), len(other))."""
    a, b = (masks.masks().reshape(len(masks), -1).astype(np.float32) for masks in (one, other))
    shared = a @ b.T
    return shared / np.maximum(1, a.sum(axis=1)[:, None] + b.sum(axis=1) - shared)


def accuracy(benchmark: Benchmark, proposals: list[Proposals] | None, settings: dict[str, Any]) -> dict[str, float]:
    """Return the row of one classifier."""
    classify = RegionClassifier("mini", proposals=None, **settings)
    plain = {"background": "none"}
    right = total = found_right = found = 0
    seconds = 0.0
    coco: list[dict[str, Any]] = []
    counts = np.zeros((4, len(benchmark.names) + 1), np.int64)
    for number in range(len(benchmark.images)):
        photo = benchmark.photo(number)
        truth, classes = benchmark.truth(number)
        started = time.process_time()
        named = classify(photo, benchmark.names, regions=truth, **plain)
        seconds += time.process_time() - started
        right, total = right + int((named.labels == classes).sum()), total + len(classes)
        if proposals is None:
            continue
        embedded: RegionEmbeddings = classify.embed(photo, regions=proposals[number])
        best = overlaps(truth, proposals[number])
        hit = best.max(axis=1) >= FOUND
        labels = classify.name(embedded, benchmark.names, **plain).labels[best.argmax(axis=1)]
        found_right, found = found_right + int((labels == classes)[hit].sum()), found + int(hit.sum())
        result = classify.name(embedded, benchmark.names)
        coco += result.instances().to_coco(number)
        panoptic = result.panoptic()
        categories = {segment["id"]: segment["label"] + 1 for segment in panoptic.segments}
        true, seen = segments(*benchmark.panoptic(number)), segments(panoptic.ids.astype(np.int64), categories)
        counts += panoptic_counts(*true, *seen, counts.shape[1])
    row = {"true masks": 100 * right / total, "ms a scene": 1000 * seconds / len(benchmark.images)}
    if proposals is not None:
        row |= {"found": 100 * found / total, "mini-sam": 100 * found_right / max(1, found)}
        ap, pq = average_precision(benchmark.content, coco)[0], panoptic_quality(counts)
        row |= {"AP": 100 * ap["AP"], "AP50": 100 * ap["AP50"], "PQ": 100 * pq["PQ"]}
    return row


def discovery(benchmark: Benchmark, proposals: list[Proposals], merge: float | None = None) -> dict[str, float]:
    """Name scenes without labels; return the words of the objects found, and the number of words per scene."""
    classify, listed = RegionClassifier("mini", proposals=None), nouns()
    meant = {name: set(own) for name, own in zip(listed.names, listed.synonyms, strict=True)}
    right = found = total = words = regions = 0
    for number, proposed in enumerate(proposals):
        truth, classes = benchmark.truth(number)
        result = classify.discover(benchmark.photo(number), regions=proposed, merge=merge)
        words, regions, total = words + len(result.names), regions + len(result), total + len(classes)
        best = overlaps(truth, result.regions)
        for index in np.flatnonzero(best.max(axis=1, initial=0) >= FOUND):
            found += 1
            right += benchmark.names[classes[index]] in meant.get(result.found[best[index].argmax()], ())
    scenes = len(proposals)
    return {
        "found": 100 * found / total, "right word": 100 * right / max(1, found),
        "words a scene": words / scenes, "regions a scene": regions / scenes,
    }  # fmt: skip


def bare_pass(backbone: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Compute only the image embedding, at any size."""
    tower = backbone.tower
    grid = pixels.shape[2] // tower.patch_size, pixels.shape[3] // tower.patch_size
    if grid == tuple(side // tower.patch_size for side in tower.image_size):
        return backbone.encode_image(pixels)
    x_BND = tower.embed(pixels, "size")
    for index in range(tower.depth):
        x_BND = tower.run(index, x_BND, grid)
    return tower.pool(x_BND)


@torch.no_grad()
def cost(
    arch: str, regions: int, rounds: int, wanted: Sequence[str] = ("",), side: int | None = None
) -> dict[str, float]:
    """Time the bare pass and operators in CPU ms, by the prefix of their names; also return their ratio to it."""
    backbone = load_backbone("mini") if arch == "mini" else random_model(arch)
    side = side or backbone.preprocess(Image.new("RGB", (8, 8))).shape[-1]
    pixels = torch.randn(1, 3, side, side)
    rng = np.random.default_rng(0)
    corners = rng.integers(0, side * 5 // 7, (regions, 2))
    boxes = np.concatenate([corners, corners + rng.integers(side // 18, side * 2 // 7, (regions, 2))], axis=1)
    masks = Proposals.from_boxes(boxes, (side, side))
    runs = {"bare pass": partial(bare_pass, backbone, pixels)}
    runs |= {
        name: partial(known.run, backbone, pixels, masks)
        for name, known in OPERATORS.items()
        if name.startswith(tuple(wanted)) and not known.weights
    }
    slow = [name for name, known in OPERATORS.items() if not known.windows]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            if name in slow and number != 1:
                continue
            spent = seconds_of(run, torch.device("cpu"))
            if number:  # the first warms up
                times[name].append(spent)
    found = {f"{name}, ms": 1000 * statistics.median(spent) for name, spent in times.items()}
    bare = found["bare pass, ms"]
    found |= {f"{name} / bare pass": found[f"{name}, ms"] / bare for name in times if name != "bare pass"}
    if {"crop", "cls_mask"} <= set(times):
        found["crop / cls_mask"] = found["crop, ms"] / found["cls_mask, ms"]
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["accuracy", "discovery", "cost"])
    parser.add_argument("--benchmark", type=Path, help="folder of `tools.render benchmark`")
    parser.add_argument("--part", default="scenes", choices=["scenes", "scenes2x"])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--operators", help="some of them, by the beginning of their names, commas between")
    parser.add_argument("--merge", type=float, help="of discovery")
    parser.add_argument("--proposals", default="mini-sam", help="what proposes masks")
    parser.add_argument("--no-proposals", action="store_true", help="true masks only")
    parser.add_argument("--arch", default="ViT-B-16", help="of open_clip, with random weights; or mini")
    parser.add_argument("--side", type=int, help="of the image that is timed; the tower's own if left out")
    parser.add_argument("--regions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_memory()
    wanted = given.operators.split(",") if given.operators else [""]
    if given.what == "cost":
        result: dict[str, Any] = cost(given.arch, given.regions, given.rounds, wanted, given.side)
        print("\n".join(f"{name:24} {value:10.2f}" for name, value in result.items()))
    else:
        if given.benchmark is None:
            parser.error(f"{given.what} needs --benchmark DIR")
        benchmark = Benchmark(given.benchmark, given.part, given.scenes)
        proposals = None
        if not given.no_proposals:
            propose = load_proposer(given.proposals)
            proposals = [propose(benchmark.photo(number)) for number in range(len(benchmark.images))]
        print(f"{len(benchmark.images)} scenes of {given.part}")
        result = {}
        if given.what == "discovery":
            result = discovery(benchmark, proposals or [], given.merge)
            print("  ".join(f"{key} {value:.1f}" for key, value in result.items()))
        for name, settings in SETTINGS.items():
            if given.what == "accuracy" and any(name.startswith(beginning) for beginning in wanted):
                result[name] = accuracy(benchmark, proposals, settings)
                cells = "  ".join(f"{key} {value:.1f}" for key, value in result[name].items())
                print(f"{name:52} {cells}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
