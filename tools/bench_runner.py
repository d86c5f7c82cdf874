"""Measure the overhead of the evaluation runner over the model alone.

    python tools/bench_runner.py                  # mini on the rendered benchmark: a small model, the worst case
    python tools/bench_runner.py --model vit      # random ViT-B/16, photos of 448 x 448, windows of 224: a usual case

One side is a loop of `segmenter(image)` over arrays in memory; the other is `evaluation.run` over the same images on
disk: reading, labels, measures, progress and saved state. The report is timed separately. The two alternate in one
process with one torch thread, a few images at a time. Printed are medians of CPU and of wall seconds, and of the ratios
of neighbouring turns. "beside_the_model" is measured within the runs: the time when the segmenter is idle, as a share
of the time when it works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from densevl import Segmenter
from densevl.benchmarking.random_model import random_model
from densevl.devices import keep_memory
from densevl.evaluation import Experiment, Predictor, open_dataset, run
from densevl.evaluation.benchmarks.base import Dataset
from densevl.evaluation.report import results as report
from densevl.images import read_image, resize

PHOTOS = Path(__file__).parents[1] / "demo" / "images"
NAMES = ("background", *(f"thing {number}" for number in range(1, 21)))


def photos(folder: Path, count: int, side: int = 448) -> Dataset:
    """Make a dataset of demo photos with random labels in blocks of 16 pixels."""
    found, rng = sorted(PHOTOS.glob("*.jpg")), np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        rgb = resize(read_image(found[number % len(found)]), (side, side))
        Image.fromarray(np.ascontiguousarray(rgb)).save(folder / f"images/{number:03d}.jpg", quality=92)
        labels = rng.integers(0, len(NAMES), (side // 16, side // 16), np.uint8).repeat(16, 0).repeat(16, 1)
        Image.fromarray(labels).save(folder / f"labels/{number:03d}.png")
    (folder / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    return open_dataset("folder", folder)


def prepare(model: str, recipe: str, count: int, folder: Path) -> tuple[Dataset, Predictor]:
    """Return images and a model for them."""
    if model == "mini":
        data = open_dataset("rendered").subset(count)
        return data, Predictor(Segmenter("mini", recipe), data.classes)
    data = photos(folder, count)
    protocol = {"short_side": 448, "crop": 224, "stride": 112}
    return data, Predictor(Segmenter(random_model("ViT-B-16"), recipe, protocol=protocol), data.classes)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return CPU and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


class Watched:
    """A predictor that measures its working time: CPU of its thread, and wall."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.clock = predictor, predictor.clock
        self.facts, self.spent = predictor.facts, [0.0, 0.0]

    def __call__(self, rgb: Any) -> Any:
        begun = time.thread_time(), time.perf_counter()
        found = self.predictor(rgb)
        for index, now in enumerate((time.thread_time(), time.perf_counter())):
            self.spent[index] += now - begun[index]
        return found


def measure(data: Dataset, predictor: Predictor, measures: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Run both sides in turns."""
    segment, labels, policy = predictor.segmenter, predictor.labels, predictor.policy
    arrays = [data[index].image for index in range(len(data))]
    experiment = Experiment(data.name, root=str(data.root), measures=measures, limit=len(data))

    def bare() -> None:
        for array in arrays:
            segment(array, labels, background=policy)

    watched: Any = Watched(predictor)

    def full(show: Any = lambda done, total, miou: None) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return run(experiment, folder, dataset=data, predictor=watched, show=show)

    bare()
    outcome = full()
    sides: dict[str, list[tuple[float, float]]] = {"bare": [], "runner": []}
    beside: list[list[float]] = []
    for _ in range(rounds):
        sides["bare"].append(timed(bare))
        watched.spent = [0.0, 0.0]
        sides["runner"].append(timed(full))
        beside.append([100 * (all_ / own - 1) for all_, own in zip(sides["runner"][-1], watched.spent, strict=True)])
    with tempfile.TemporaryDirectory() as folder:
        page = timed(lambda: report.write(outcome, folder, predictor))
    medians = {side: [statistics.median(column) for column in zip(*rows, strict=True)] for side, rows in sides.items()}
    # Neighbouring turns had the same load on the machine.
    pairs = list(zip(sides["bare"], sides["runner"], strict=True))
    ratios = [statistics.median(runner[index] / alone[index] for alone, runner in pairs) for index in (0, 1)]
    return {
        "images": len(data),
        "measures": list(experiment.measures),
        "bare_ms": [round(1000 * seconds / len(data), 2) for seconds in medians["bare"]],
        "runner_ms": [round(1000 * seconds / len(data), 2) for seconds in medians["runner"]],
        "overhead_percent_cpu_wall": [round(100 * (ratio - 1), 1) for ratio in ratios],
        "beside_the_model_percent_cpu_wall": [round(statistics.median(part), 1) for part in zip(*beside, strict=True)],
        "report_seconds_cpu_wall": [round(seconds, 2) for seconds in page],
        "parts": {name: round(1000 * seconds / len(data), 2) for name, seconds in outcome.parts.items()},
    }


def main() -> None:
    """Parse, measure, print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("mini", "vit"), default="mini")
    parser.add_argument("--recipe", default="naclip")
    parser.add_argument("--images", type=int, help="200 of mini's, 4 of the other")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measures", default="iou,calibration", help="of iou, boundary, calibration")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        count = given.images or (200 if given.model == "mini" else 4)
        data, predictor = prepare(given.model, given.recipe, count, Path(folder) / "data")
        found = measure(data, predictor, tuple(given.measures.split(",")), given.rounds)
    print(json.dumps({"model": given.model, "recipe": given.recipe, **found}, indent=1))


if __name__ == "__main__":
    main()
