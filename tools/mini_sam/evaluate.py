"""Measure "mini-sam": python -m tools.mini_sam.evaluate --json FILE [--markdown FILE] [--weights FILE].

Scenes of 256 px with two or three objects in a style that training never saw, by the package's own `SamPredictor` and
`SamAutomaticMaskGenerator`. One point per object is its innermost pixel (as in SAM's evaluation) or a random one; of
the three guesses the one with the best predicted IoU counts. All figures but seconds are per cent.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor

from densevl.proposals.sam.mini_sam import AUTOMATIC, load_mini_sam
from tools.mini_sam.data import point_in
from tools.render.art import TRAIN_STYLES
from tools.render.nouns import BENCHMARK_NOUNS
from tools.render.scenes import Scene, SceneMaker

SEED = 900_000
SIDE = 256
SETS = {"train": TRAIN_STYLES, "twemoji": ("twemoji",), "openmoji": ("openmoji",)}
PROMPTS = ("point", "random point", "box", "point, best of 3")
POINTS_PER_SIDE = 16
QUALITIES, STABILITIES = (0.45, 0.6, 0.75), (0.25, 0.4, 0.6)
"""Thresholds that `--choose` tries."""


def scenes_of(styles: tuple[str, ...], count: int, seed: int) -> list[Scene]:
    """Return scenes of two or three objects of the benchmark's nouns, only turned a little."""
    nouns = range(BENCHMARK_NOUNS)
    maker = SceneMaker(SIDE, styles=styles, nouns=nouns, seed=seed, objects=(2, 3), augment=False, held_out=None)
    return [maker.scene() for _ in range(count)]


def objects_of(scene: Scene) -> list[np.ndarray]:
    """Return the mask of every object: bool (S, S)."""
    return [scene.instances == number for number in range(len(scene.nouns))]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two bool masks."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def innermost(mask: np.ndarray) -> tuple[int, int]:
    """Return the pixel of a mask farthest from its outline: x, y."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = divmod(int(depth.argmax()), mask.shape[1])
    return x, y


def prompted(predictor: SamPredictor, mask: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """Return the IoU of the masks of one object for each of `PROMPTS`; the predictor holds the image."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]])
    inner, chance = _by_point(predictor, innermost(mask)), _by_point(predictor, point_in(mask, rng))
    boxed, _, _ = predictor.predict(box=box, multimask_output=False)
    each = [iou(guess, mask) for guess in inner]
    return dict(zip(PROMPTS, (each[0], iou(chance[0], mask), iou(boxed[0], mask), max(each)), strict=True))


def _by_point(predictor: SamPredictor, point: tuple[int, int]) -> np.ndarray:
    """Return three guesses at the mask around a point, the one with the best predicted IoU first."""
    masks, quality, _ = predictor.predict(np.array([point]), np.ones(1, int))
    return masks[np.argsort(-quality)]


Records = list[list[dict[str, Any]]]
"""The records of `SamAutomaticMaskGenerator` for each image."""


def automatic(sam: Any, scenes: list[Scene], thresholds: dict[str, float]) -> dict[str, float]:
    """Return recall of objects at IoU 0.5 and 0.75, masks per image and seconds per image of automatic masks."""
    return score(scenes, *propose(sam, scenes, thresholds))


def propose(sam: Any, scenes: list[Scene], thresholds: dict[str, float]) -> tuple[Records, float]:
    """Return the automatic masks of every scene, and seconds per image."""
    generator, begun = (
        SamAutomaticMaskGenerator(sam, points_per_side=POINTS_PER_SIDE, **thresholds),
        time.perf_counter(),
    )
    records = [generator.generate(scene.image) for scene in scenes]
    return records, (time.perf_counter() - begun) / len(scenes)


def score(scenes: list[Scene], records: Records, seconds: float) -> dict[str, float]:
    """Compute the result of `automatic` from its masks."""
    best = []
    for scene, found in zip(scenes, records, strict=True):
        proposals = [record["segmentation"] for record in found]
        best += [max((iou(p, mask) for p in proposals), default=0.0) for mask in objects_of(scene)]
    recall = {f"recall at {bar}": 100 * float(np.mean(np.array(best) >= bar)) for bar in (0.5, 0.75)}
    masks = sum(map(len, records)) / len(scenes)
    return {**recall, "mean best IoU": 100 * float(np.mean(best)), "masks": masks, "seconds": seconds}


def choose(sam: Any, scenes: list[Scene]) -> dict[str, dict[str, float]]:
    """Automatic masks of scenes in training styles for every pair of thresholds in `QUALITIES` and `STABILITIES`.

    Of overlapping masks the generator keeps the best by predicted IoU, so a higher threshold can be applied later.
    """
    rows = {}
    for stability in STABILITIES:
        thresholds = {"pred_iou_thresh": QUALITIES[0], "stability_score_thresh": stability}
        records, seconds = propose(sam, scenes, thresholds)
        for quality in QUALITIES:
            kept = [[record for record in found if record["predicted_iou"] > quality] for found in records]
            rows[f"{quality} {stability}"] = score(scenes, kept, seconds)
    return rows


def evaluate(weights: Path | None, *, scenes: int = 200, images: int = 50, seed: int = SEED) -> dict[str, Any]:
    """Measure prompts on `scenes` and automatic masks on the first `images` scenes of every set."""
    sam, rng = load_mini_sam(weights), np.random.default_rng(seed)
    result: dict[str, Any] = {"seed": seed, "scenes": scenes, "images": images, "threads": torch.get_num_threads()}
    predictor, result["prompts"], result["automatic"] = SamPredictor(sam), {}, {}
    for name, styles in SETS.items():
        some, rows = scenes_of(styles, scenes, seed), []
        for scene in some:
            predictor.set_image(scene.image)
            rows += [prompted(predictor, mask, rng) for mask in objects_of(scene)]
        result["prompts"][name] = {key: 100 * float(np.mean([row[key] for row in rows])) for key in PROMPTS}
        result["automatic"][name] = automatic(sam, some[:images], AUTOMATIC)
    return result


def markdown(result: dict[str, Any]) -> str:
    """Format the result as two tables."""
    lines = [f"Seed {result['seed']}, {result['threads']} thread(s); scenes a set: {result['scenes']} for prompts, "]
    lines[0] += f"{result['images']} for automatic masks."
    return "\n".join(
        [*lines, *table("IoU by prompt", result["prompts"]), *table("automatic masks", result["automatic"]), ""]
    )


def table(title: str, rows: dict[str, dict[str, float]]) -> list[str]:
    """Format rows of equal columns as lines of markdown."""
    columns = list(next(iter(rows.values())))
    lines = ["", f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = (f"{row[column]:.{2 if column == 'seconds' else 1}f}" for column in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="a file of tools.mini_sam.export; default: the shipped one")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--images", type=int, default=50, help="scenes of each set with automatic masks")
    parser.add_argument("--choose", action="store_true", help="only try thresholds of automatic masks, training styles")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(given.threads)
    if given.choose:
        some = scenes_of(TRAIN_STYLES, given.images, given.seed + 1)
        print("\n".join(table("predicted IoU, stability above", choose(load_mini_sam(given.weights), some))))
        return
    result = evaluate(given.weights, scenes=given.scenes, images=given.images, seed=given.seed)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if given.markdown:
        given.markdown.write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
