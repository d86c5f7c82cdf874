"""CPU time of the operators against the formulas of papers and packages; ratios within one run on one thread.

    python tools/kernels/bench.py                   # all, some minutes
    python tools/kernels/bench.py --only decode     # cases whose name holds this: decode, attention, encoder, affinity
    python tools/kernels/bench.py --write           # also record the numbers in docs/kernels.json and docs/kernels.md

Results are compared before timing. CPU seconds of the process, the two sides alternating, medians; other work on the
machine slows both sides but not always alike, so the load is printed beside the ratio. This says nothing about GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from densevl.devices import keep_memory, processor  # noqa: E402
from densevl.inference import WindowGrid  # noqa: E402
from densevl.kernels import RelPos, affinity_apply, dense_decode, grid_attention  # noqa: E402
from tools.kernels import formulas  # noqa: E402
from tools.kernels.page import update  # noqa: E402

Run = Callable[[], Any]


def _decode(scale: float | None) -> tuple[Run, Run]:
    windows = WindowGrid.place(448, 672, 224, 112, 16)
    parts = torch.randn(len(windows), 171, 14, 14) * 0.1
    laid = windows.assemble(parts.permute(0, 2, 3, 1).contiguous(), 1)
    plan = windows.plan(448, 672)
    return (
        lambda: formulas.decode(parts, windows.corners, 224, (448, 672), scale),
        lambda: dense_decode(laid, plan, scale),
    )


def decode() -> tuple[Run, Run, float]:
    """15 windows, 448 x 672, 171 queries, labels: against upsampling, padding, adding, dividing, resizing, argmax."""
    usual, ours = _decode(None)
    return usual, ours, (usual()[0] != ours()[0][0]).double().mean().item()


def decode_with_probabilities() -> tuple[Run, Run, float]:
    """The same with the softmax over all queries: label and probability."""
    usual, ours = _decode(40.0)

    def probable() -> tuple[torch.Tensor, torch.Tensor]:
        label, score, lse = ours()
        return label[0], torch.exp(40.0 * score - lse)[0]

    return usual, probable, (usual()[1] - probable()[1]).abs().max().item()


def attention() -> tuple[Run, Run, float]:
    """SAM's global block at 4,096 tokens, 12 heads, relative positions: against segment_anything's own formula."""
    from segment_anything.modeling.image_encoder import add_decomposed_rel_pos, get_rel_pos

    grid, heads, width = (64, 64), 12, 64
    q, k, v = torch.randn(3, heads, 4096, width)
    tables = torch.randn(2, 127, width) * 0.1

    def usual() -> torch.Tensor:
        logits = (q * width**-0.5) @ k.transpose(-2, -1)
        return add_decomposed_rel_pos(logits, q, tables[0], tables[1], grid, grid).softmax(dim=-1) @ v

    def ours() -> torch.Tensor:
        # Both sides compute the terms within the timing.
        on_grid = q.unflatten(1, grid)
        rows = torch.einsum("bhwc,hkc->bhwk", on_grid, get_rel_pos(64, 64, tables[0]))
        columns = torch.einsum("bhwc,wkc->bhwk", on_grid, get_rel_pos(64, 64, tables[1]))
        rel = torch.cat([rows, columns], dim=-1).flatten(1, 2)
        return grid_attention(q[None], k[None], v[None], grid, bias=RelPos(rel))[0]

    return usual, ours, (usual() - ours()).abs().max().item()


def encoder() -> tuple[Run, Run, float]:
    """SAM's whole image encoder, ViT-B with random weights at 1,024 pixels: against segment_anything's own forward."""
    from segment_anything import sam_model_registry

    from densevl.proposals.sam.encoder import run_encoder

    own = sam_model_registry["vit_b"]().image_encoder.eval().requires_grad_(False)
    for block in own.blocks:  # new tables are 0
        torch.nn.init.normal_(block.attn.rel_pos_h, std=0.1)
        torch.nn.init.normal_(block.attn.rel_pos_w, std=0.1)
    pixels = torch.randn(1, 3, 1024, 1024)

    def usual() -> torch.Tensor:
        return own(pixels)

    def ours() -> torch.Tensor:
        return run_encoder(own, pixels)

    return usual, ours, (usual() - ours()).abs().max().item()


def affinity() -> tuple[Run, Run, float]:
    """Proxy affinity at 2,304 tokens, 12 heads, 768 wide: against one map copied for every head (ProxyCLIP's code)."""
    tokens, heads = 2304, 12
    x = F.normalize(torch.randn(1, tokens, 768) + 0.5, dim=-1)
    v = torch.randn(1, tokens, heads * 64)

    def usual() -> torch.Tensor:
        return formulas.affinity(x, v, heads, gamma=3.0, beta=1.2)

    def ours() -> torch.Tensor:
        return affinity_apply(x, v, gamma=3.0, beta=1.2)

    return usual, ours, (usual() - ours()).abs().max().item()


CASES = {f.__name__: f for f in (decode, decode_with_probabilities, attention, encoder, affinity)}
BARS = {"decode": 20.0, "decode_with_probabilities": 10.0, "attention": 3.0, "encoder": 1.0, "affinity": 3.0}
MOST_REPEATS = {"encoder": 3}  # half a minute each


def cpu_ms(run: Run) -> float:
    """CPU milliseconds of one call."""
    started = time.process_time()
    run()
    return (time.process_time() - started) * 1e3


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Time one case: medians of both sides, alternating, and their ratio."""
    torch.manual_seed(0)
    repeats = min(repeats, MOST_REPEATS.get(name, repeats))
    usual, ours, difference = CASES[name]()
    before = os.getloadavg()[0]
    pairs = [(cpu_ms(usual), cpu_ms(ours)) for _ in range(repeats)]
    first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {
        "case": name,
        "what": CASES[name].__doc__,
        "usual_ms": round(first, 1),
        "ours_ms": round(second, 1),
        "ratio": round(first / second, 1),
        "bar": BARS[name],
        "difference": difference,
        "load": [round(before, 1), round(os.getloadavg()[0], 1)],
        "repeats": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="record the numbers in docs/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    rows = []
    with torch.inference_mode():
        for name in CASES:
            if options.only in name:
                rows.append(measure(name, options.repeats))
                print(json.dumps(rows[-1]), flush=True)
    if options.write:
        machine = {"processor": processor()[0], "cores": os.cpu_count()}
        update("cpu", rows, ("case",), keep=bool(options.only), torch=torch.__version__, **machine)


if __name__ == "__main__":
    main()
