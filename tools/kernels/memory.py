"""Memory at 16,384 tokens, each case in its own process: stitched last blocks and their operators.

    python tools/kernels/memory.py                     # all, some minutes
    python tools/kernels/memory.py --only affinity     # cases whose name holds this
    python tools/kernels/memory.py --write             # also record them in docs/kernels.json and docs/kernels.md

Extra memory is the peak of the process during the call above the resident memory before it (Linux). Inputs exist
before; outputs count. A small call of the same kind runs first, so that libraries are loaded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from densevl import kernels, recipes  # noqa: E402
from densevl.benchmarking.clock import reset_peak, resident_mib  # noqa: E402
from densevl.inference import WindowGrid  # noqa: E402
from densevl.inference.stitching import encode_stitched  # noqa: E402
from densevl.recipes import Hints  # noqa: E402
from densevl.recipes.run import finish, start  # noqa: E402
from tools.kernels.page import update  # noqa: E402

BAR = 600  # MiB
SIDE, WIDTH, HEADS = 128, 768, 12
Call = Callable[[int], Callable[[], Any]]  # from the side of the grid to the measured call


def stitched(name: str, stride: int = 256, **changes: Any) -> Call:
    """A recipe over side * 16 pixels in windows of 256; the tower has one block, so only the end takes memory."""
    from open_clip.transformer import VisionTransformer

    from densevl.backbones.towers.native import NativeViT

    recipe = replace(recipes.get(name), stitch=recipes.JoinedProjections(), **changes)
    visual = VisionTransformer(
        image_size=224, patch_size=16, width=WIDTH, layers=1, heads=HEADS, mlp_ratio=4.0, output_dim=512
    )
    tower = NativeViT(visual.eval().requires_grad_(False), "random")
    model: Any = SimpleNamespace(start=partial(start, tower), finish=partial(finish, tower))

    def call(side: int) -> Callable[[], Any]:
        pixels = torch.randn(1, 3, side * 16, side * 16)
        windows = WindowGrid.place(side * 16, side * 16, 256, stride, 16, "patch")
        proxy = torch.randn(1, WIDTH, side, side) if "proxy" in recipe.reads else None
        masks = (torch.rand(1, 20, side * 4, side * 4) > 0.5).float() if "masks" in recipe.reads else None
        hints = Hints(proxy=proxy, masks=masks)
        return lambda: encode_stitched(model, pixels, windows, recipe, hints, 8)

    return call


def attention(bias: str | None, lse: bool = False) -> Call:
    def call(side: int) -> Callable[[], Any]:
        q, k, v = torch.randn(1, side * side, 3, HEADS, 64).permute(2, 0, 3, 1, 4).unbind(0)
        rel = kernels.RelPos(torch.randn(HEADS, side * side, 2 * side)) if bias == "relative" else None
        near = kernels.Gaussian(5.0) if bias == "gaussian" else rel
        return lambda: kernels.grid_attention(q, k, v, (side, side), bias=near, want_lse=lse)

    return call


def affinity(**rule: Any) -> Call:
    def call(side: int) -> Callable[[], Any]:
        x = F.normalize(torch.randn(1, side * side, WIDTH) + 0.5, dim=-1)
        v = torch.randn(1, side * side, WIDTH)
        return lambda: kernels.affinity_apply(x, v, **rule)

    return call


def mix(side: int) -> Callable[[], Any]:
    q, k, v = torch.randn(1, side * side, 3, HEADS, 64).permute(2, 0, 3, 1, 4).unbind(0)
    rel, x = torch.randn(HEADS, side * side, 2 * side), torch.randn(1, side * side, WIDTH)
    return lambda: kernels.affinity_mix(q, k, v, x, grid=(side, side), covered=(side, side), rel=rel)


def nearest(side: int) -> Callable[[], Any]:
    x, memory = torch.randn(side * side, WIDTH), torch.randn(side * side, WIDTH)
    return lambda: kernels.nearest(x, memory)


CASES: dict[str, tuple[str, Callable[[], Call]]] = {
    "stitched clearclip": ("qq, values alone", lambda: stitched("clearclip")),
    "stitched sclip": ("qq + kk, skip connection and MLP kept", lambda: stitched("sclip")),
    "stitched sclip overlap": ("the same, windows overlapping by half", lambda: stitched("sclip", 128)),
    "stitched naclip": ("kk, Gaussian neighbourhood", lambda: stitched("naclip")),
    "stitched ov_stitcher": ("affinity of a proxy", lambda: stitched("ov_stitcher")),
    "stitched textregion": ("20 masks pooled", lambda: stitched("textregion")),
    "attention plain": ("grid_attention without bias", lambda: attention(None)),
    "attention gaussian": ("grid_attention, Gaussian", lambda: attention("gaussian")),
    "attention relative": ("grid_attention, relative positions", lambda: attention("relative")),
    "attention relative lse": ("the same with logsumexp", lambda: attention("relative", lse=True)),
    "affinity cut": ("affinity_apply, thresholded at the mean", lambda: affinity(gamma=3.0, beta=1.2)),
    "affinity floor": ("the same, cosines floored", lambda: affinity(gamma=3.0, beta=1.2, floor=0.1)),
    "affinity linear": ("affinity_apply, linear", lambda: affinity(linear=True, floor=0.4)),
    "mix": ("affinity_mix, 12 heads, relative positions", lambda: mix),
    "nearest": ("nearest, as many rows of memory", lambda: nearest),
}


def measure(name: str) -> dict[str, Any]:
    """Measure one case in this process."""
    what, make = CASES[name]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with torch.inference_mode():
        call = make()
        call(32)()
        run = call(SIDE)
        before = resident_mib("VmRSS")
        reset_peak()
        started = time.process_time()
        result = run()  # kept, so that the output counts
        spent = time.process_time() - started
        extra = resident_mib("VmHWM") - before
    del result
    return {"case": name, "what": what, "extra_mb": round(extra), "bar_mb": BAR, "cpu_seconds": round(spent, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--here", help="run one case in this process and print its row")
    parser.add_argument("--write", action="store_true", help="record the numbers in docs/")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.here)))
        return
    rows = []
    for name in CASES:
        if options.only in name:
            command = [sys.executable, __file__, "--here", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout))
            print(done.stdout, end="", flush=True)
    if options.write:
        update("memory", rows, ("case",), keep=bool(options.only), torch=torch.__version__)


if __name__ == "__main__":
    main()
