"""The figures of docs/speed.md: python tools/bench.py --write. One thread; --only protocol,plans runs a part of them.

    python tools/bench.py --only protocol      # the papers' protocol against bare passes, and its memory
    python tools/bench.py --model photo+vit    # a 448 x 448 photo
    python tools/bench.py --threads 2          # elapsed time of a pass on two threads, as a share of that on one
    python tools/bench.py --peers --write      # the tower against open_clip, OpenVINO and ONNX Runtime (extra "bench")

Parts: protocol, vocabulary (1 to 1,000 labels), plans (windows and precisions), recipes (every one that borrows
nothing), compile (gains of torch.compile), bare (our pass, open_clip's own, and the matrix products alone). They use a
random ViT-B/16. `densevl bench` times a single method. If there is a GPU, the same parts run on it. Quality of plans:
tools/bench_plans.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from densevl.backbones import Backbone  # noqa: E402
from densevl.backbones.lowered.probe import machine  # noqa: E402
from densevl.benchmarking.cases import Case, measure  # noqa: E402
from densevl.benchmarking.clock import medians, resident_mib, seconds  # noqa: E402
from densevl.benchmarking.limits import bare_pass, products  # noqa: E402
from densevl.benchmarking.random_model import random_model  # noqa: E402
from densevl.devices import keep_memory  # noqa: E402
from densevl.recipes import get, names  # noqa: E402
from densevl.recipes.blocks import as_trained  # noqa: E402
from tools.peers import embedding  # noqa: E402
from tools.peers import peers as compared  # noqa: E402
from tools.speed_page import update  # noqa: E402

ARCH = "ViT-B-16"
SMALL, LARGE = (336, 448), (560, 1008)
PARTS = ("bare", "compile", "protocol", "vocabulary", "plans", "recipes")


def cases(part: str) -> Iterator[Case]:
    """Return the cases of a part."""
    if part == "protocol":
        for size in (SMALL, LARGE):
            for labels in (21, 171):
                yield Case("sclip", "sliding", "float32", *size, labels)
    elif part == "vocabulary":
        for labels in (1, 21, 171, 1000):
            yield Case("sclip", "sliding", "float32", *LARGE, labels)
    elif part == "plans":
        for size in (SMALL, LARGE):
            for plan in ("sliding", "tiles", "whole"):
                for precision in ("float32", "bfloat16", "int8"):
                    yield Case("sclip", plan, precision, *size, 21)
    elif part == "recipes":
        for name in names():
            if not get(name).reads & {"proxy", "sam", "regions", "masks"}:
                yield Case(name, "tiles", "float32", *SMALL, 21)


def bare(backbone: Backbone, rounds: int, batch: int = 4) -> dict[str, Any]:
    """Time our pass with "vanilla", open_clip's own, and its matrix products alone, for a batch of windows: seconds."""
    pixels = torch.randn(batch, 3, 224, 224, device=backbone.device)
    calls = {
        "ours": lambda: backbone.encode_dense(pixels, "vanilla"),
        "open_clip": bare_pass(backbone, batch),
        "products": products(backbone, batch),
    }
    return {"batch": batch, **medians(calls, rounds, backbone.device)}


def compiled(backbone: Backbone, rounds: int, batch: int = 4) -> dict[str, Any]:
    """Time twelve runs of a block, eager and with torch.compile: seconds, and the seconds of compilation."""
    tower: Any = backbone.tower  # type: ignore[attr-defined]
    grid = (224 // tower.patch_size,) * 2
    block = tower.view(0, grid)
    tokens = torch.randn(batch, tower.prefix + grid[0] * grid[1], block.module.ln_1.normalized_shape[0])
    fast = torch.compile(lambda x: as_trained(block, x))

    def repeated(run: Any) -> Any:
        return torch.no_grad()(lambda: [run(tokens) for _ in range(12)])

    started = time.perf_counter()
    repeated(fast)()
    compiling = time.perf_counter() - started
    calls = {"plain": repeated(lambda x: as_trained(block, x)), "compiled": repeated(fast)}
    return {"batch": batch, "compiling": compiling, **medians(calls, rounds, backbone.device)}


def on_threads(count: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Elapsed seconds of an image embedding of six windows on one thread and on `count`, the least of each."""
    backbone = random_model(ARCH)
    pixels = torch.randn(6, 3, 224, 224)
    for precision in ("float32", "float32-packed", "int8"):
        run = embedding(backbone if precision == "float32" else backbone.at_precision(precision), pixels)
        taken: dict[int, list[float]] = {1: [], count: []}
        for _ in range(1 + rounds):  # the first is not counted
            for threads, own in taken.items():
                torch.set_num_threads(threads)
                started = time.perf_counter()
                run()
                own.append(time.perf_counter() - started)
        one, shared = (min(own[1:]) for own in taken.values())
        yield {"precision": precision, "threads": count, "one": one, "shared": shared, "ratio": shared / one}


def bench_photo(name: str, rounds: int) -> dict[str, Any]:
    """Time a model of photos on a 448 x 448 photo with five labels, text cached."""
    import densevl
    from densevl.images import read_image, resize

    rgb = np.ascontiguousarray(resize(read_image(ROOT / "demo" / "images" / "cat.jpg"), (448, 448)))
    segment = densevl.Segmenter(name)
    labels = ["cat", "dog", "cup", "chair", "car"]
    segment(rgb, labels)
    taken = statistics.median(seconds(lambda: segment(rgb, labels), segment.backbone.device) for _ in range(rounds))
    return {
        "what": f"{name}, 448x448, 5 labels, one thread",
        "cpu_seconds": round(taken, 3),
        "peak_mb": round(resident_mib("VmHWM"), 1),
    }


def main() -> None:
    """Parse arguments, measure, print rows of JSON; write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("random", "photo", "photo+vit", "photo+vit28"), default="random")
    parser.add_argument("--only", type=lambda words: words.split(","), default=list(PARTS))
    parser.add_argument("--peers", action="store_true", help="against other libraries, and nothing else")
    parser.add_argument("--threads", type=int, help="elapsed time on so many threads, and nothing else")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="update docs/speed.json and docs/speed.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    if options.model != "random":
        print(json.dumps(bench_photo(options.model, options.rounds), indent=2))
        return
    if options.threads:
        for row in on_threads(options.threads, options.rounds):
            print(json.dumps(row), flush=True)
        return
    if options.peers:
        peers = compared(options.rounds)
        for row in peers["passes"] + peers["photos"]:
            print(json.dumps(row))
        if options.write:
            update({"peers": peers})
        return
    backbone = random_model(ARCH)
    result: dict[str, Any] = {}
    for part in options.only:
        if part in ("bare", "compile"):
            result[part] = (bare if part == "bare" else compiled)(backbone, 3 * options.rounds)
            print(json.dumps(result[part]), flush=True)
            continue
        result[part] = []
        for case in cases(part):
            result[part].append(measure(backbone, case, options.rounds))
            print(json.dumps(result[part][-1]), flush=True)
    if options.write:
        facts = {
            "model": backbone.name,
            "device": machine(backbone.device),
            "torch": torch.__version__,
            "rounds": options.rounds,
        }
        update({**facts, **result})


if __name__ == "__main__":
    main()
