"""Times densevl against the least work its protocol could take: the bare forward passes of the tower.

    python tools/bench.py                      # SCLIP protocol, random ViT-B/16, 560 x 1008, 171 labels
    python tools/bench.py --model photo        # a 448 x 448 photo

One thread. CPU seconds of the process, so a busy machine changes them little; the two sides are interleaved and the
ratio of their medians is what to quote. Extra memory is the peak resident size of the first full run above what was
resident after a bare pass, so nothing that an earlier run left allocated can hide it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

MB = 1024.0  # the kernel counts in KiB


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def reset_peak() -> None:
    """Start the peak of memory anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def memory_mb(what: str) -> float:
    """Memory of this process in MiB: what is resident now ("VmRSS"), or its peak since `reset_peak` ("VmHWM")."""
    status = Path("/proc/self/status").read_text()
    return float(status.split(f"{what}:")[1].split()[0]) / MB


def random_clip(arch: str) -> Any:
    """An open_clip model with random weights as a densevl backbone: speed does not depend on what it knows."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from densevl.backbones.open_clip_model import OpenClipBackbone

    torch.manual_seed(0)
    model = open_clip.create_model(arch, load_weights=False).eval().requires_grad_(False)
    settings = PreprocessCfg()
    backbone = OpenClipBackbone(
        model,
        open_clip.get_tokenizer(arch),
        image_transform_v2(settings, is_train=False),
        name=f"{arch} (random)",
        mean=settings.mean,
        std=settings.std,
    )
    return backbone, model


def bench_sclip(arch: str, height: int, width: int, labels: int, recipe: str, repeats: int) -> dict[str, Any]:
    """The whole path from pixels to a label map, against (number of windows) x (one bare forward pass)."""
    from densevl.inference import WindowGrid, decode, window_scores

    backbone, model = random_clip(arch)
    text = torch.nn.functional.normalize(torch.randn(labels, backbone.embed_dim), dim=-1)
    classes = torch.arange(labels)
    pixels = torch.randn(1, 3, height, width)
    windows = WindowGrid.place(height, width, 224, 112, backbone.patch_size)
    one = torch.randn(1, 3, 224, 224)

    def ours() -> None:
        scores, _ = window_scores(backbone, pixels, text, windows, recipe=recipe)
        decode(scores, windows.plan(height, width), classes, scale=40.0)

    def bare() -> None:
        with torch.no_grad():
            model.encode_image(one)

    bare()
    before = memory_mb("VmRSS")
    reset_peak()
    ours()
    extra = memory_mb("VmHWM") - before
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(repeats):
        times["ours"].append(cpu_seconds(ours))
        times["bare"] += [cpu_seconds(bare) for _ in range(8)]
    full, single = statistics.median(times["ours"]), statistics.median(times["bare"])
    return {
        "what": f"{recipe} protocol, {height}x{width}, {labels} labels, {arch} random, fp32, one thread",
        "windows": len(windows),
        "cpu_seconds": round(full, 3),
        "bare_pass_seconds": round(single, 4),
        "ratio": round(full / (len(windows) * single), 3),
        "extra_mb": round(extra, 1),
    }


def bench_photo(repeats: int) -> dict[str, Any]:
    """Segmenter("photo") on a 448 x 448 photo with five labels, text cached."""
    import densevl
    from densevl.images import read_image, resize

    photo = Path(__file__).parents[1] / "demo" / "images" / "cat.jpg"
    rgb = np.ascontiguousarray(resize(read_image(photo), (448, 448)))
    segment = densevl.Segmenter("photo")
    labels = ["cat", "dog", "cup", "chair", "car"]
    segment(rgb, labels)
    seconds = statistics.median(cpu_seconds(lambda: segment(rgb, labels)) for _ in range(repeats))
    return {
        "what": "photo model, 448x448, 5 labels, one thread",
        "cpu_seconds": round(seconds, 3),
        "peak_mb": round(memory_mb("VmHWM"), 1),
    }


def main() -> None:
    """Parse, measure, print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16", help="an open_clip architecture (random weights), or photo")
    parser.add_argument("--recipe", default="sclip")
    parser.add_argument("--size", default="560x1008", help="height x width after the resize")
    parser.add_argument("--labels", type=int, default=171)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.model == "photo":
        result = bench_photo(options.repeats)
    else:
        height, width = map(int, options.size.split("x"))
        result = bench_sclip(options.model, height, width, options.labels, options.recipe, options.repeats)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
