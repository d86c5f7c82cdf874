"""Do guided crops help to name the contents of a picture? The share of scenes whose likeliest word is in them.

    python -m tools.bench_guided --root data/benchmark/scenes --images 60

A scene holds several things, each a small part of it. All classes of the benchmark compete; a hit is the word of a
thing that covers at least one pixel. Compared are words alone, with guided crops, with presence, and with both.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from densevl.evaluation import open_dataset
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.tuning.scores import difference, mean_recall

WAYS = {"words alone": {}, "guided": {"guided": 5}, "presence": {"presence": 0.5}}
WAYS["both"] = WAYS["guided"] | WAYS["presence"]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the scenes of tools.render benchmark")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--images", type=int, default=60)
    given = parser.parse_args()
    dataset = open_dataset("folder", given.root, task="semantic").subset(given.images)
    labels = dataset.classes.labels()
    first = FewShot(given.model)
    print("| way | hits | difference to words alone, 95 % interval | s/picture |", "|---|---|---|---|", sep="\n")
    plain = None
    for name, settings in WAYS.items():
        way, hits, started = FewShot(first.backbone, **settings), [], time.perf_counter()
        for at in range(len(dataset)):
            sample = dataset[at]
            there = {dataset.names[number] for number in np.unique(sample.truth[sample.truth > 0])}
            hits.append(way(sample.image, labels).name in there)
        counts = np.array([[[hit], [1], [1]] for hit in hits], np.int64)
        plain = counts if plain is None else plain
        gain, seconds = difference(counts, plain, mean_recall), (time.perf_counter() - started) / len(dataset)
        told = "" if plain is counts else f"{100 * gain.value:+.0f}, {100 * gain.low:+.0f} to {100 * gain.high:+.0f}"
        print(f"| {name} | {100 * np.mean(hits):.0f} % | {told} | {seconds:.3f} |", flush=True)


if __name__ == "__main__":
    main()
