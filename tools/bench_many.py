"""Images per second of `x.many(images)` against `x(image)` one by one: python -m tools.bench_many [--device cuda].

Photos are those of demo/images at three sizes, read from files. For each model, rounds of all alternate, so a busy
machine slows all. Ratios are of the fastest rounds, in wall time and in CPU time; only wall time shows the gain of
reading ahead. "own" is the default batch size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from densevl import AnomalyDetector, FewShot, Segmenter
from densevl.benchmarking.random_model import random_model
from densevl.devices import keep_memory
from densevl.images import read_image, resize

PHOTOS = Path(__file__).parents[1] / "demo" / "images"
SIZES = {"small": (192, 256), "medium": (384, 512), "large": (768, 1024)}
LABELS = ["cat", "dog", "cup", "person", "sky"]
ONE_BY_ONE, OWN = -1, 0


def photos(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """Write `count` photos of one size as JPEG files."""
    sources = sorted(PHOTOS.glob("*.jpg"))
    paths = [folder / f"{size[1]}-{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(resize(read_image(sources[number % len(sources)]), size)).save(path)
    return paths


def pipelines(device: str | None) -> Iterator[tuple[str, Callable[[Any], Any], Callable[..., Any]]]:
    """Return the timed calls: a name, a call with one image, and one with many."""
    vit = random_model("ViT-B-16", device)
    for name, model in (("mini", "mini"), ("photo", "photo"), ("random ViT-B/16", vit)):
        given = {} if name.startswith("random") else {"device": device}
        segment = Segmenter(model, background="none", **given)
        yield (
            f"Segmenter, {name}",
            lambda image, run=segment: run(image, LABELS),
            lambda images, size, run=segment: run.many(images, LABELS, batch=size or None),
        )
    for name, model in (("mini", "mini"), ("random ViT-B/16", vit)):
        given = {} if name.startswith("random") else {"device": device}
        for what, run in (("FewShot", FewShot(model, **given)), ("AnomalyDetector", AnomalyDetector(model, **given))):
            words = (LABELS,) if what == "FewShot" else ()
            yield (
                f"{what}, {name}",
                lambda image, run=run, words=words: run(image, *words),
                lambda images, size, run=run, words=words: run.many(images, *words, batch=size or None),
            )


def main() -> None:
    """Time them and print one row per pipeline and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=[OWN, 4, 16, 64])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small", "medium"])
    parser.add_argument("--only", default="")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_memory()
    print(
        "| pipeline | photos | one by one, images/s |",
        *(f"{f'batch {size}' if size else 'own batch'} |" for size in options.batch),
    )
    print("|---|---|---|" + "---|" * len(options.batch))
    with tempfile.TemporaryDirectory() as folder:
        sets = {name: photos(Path(folder), SIZES[name], options.images) for name in options.sizes}
        for what, one, many in pipelines(options.device):
            for name, paths in sets.items() if options.only in what else ():
                best: dict[int, tuple[float, float]] = {}
                for turn in range(1 + options.rounds):
                    for size in (ONE_BY_ONE, *options.batch):
                        clock, work = time.perf_counter(), time.process_time()
                        for _ in map(one, paths) if size == ONE_BY_ONE else many(paths, size):
                            pass
                        taken = time.perf_counter() - clock, time.process_time() - work
                        if turn:  # the first warms up
                            known = best.get(size, taken)
                            best[size] = min(known[0], taken[0]), min(known[1], taken[1])
                clock, work = best.pop(ONE_BY_ONE)
                height, width = SIZES[name]
                ratios = " | ".join(f"{clock / wall:.2f}x, {work / cpu:.2f}x" for wall, cpu in best.values())
                print(f"| {what} | {width}x{height} | {len(paths) / clock:.2f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
