"""Times our automatic masks against the package's `SamAutomaticMaskGenerator`, on the same model and image.

    python -m tools.bench_masks                                  # mini-sam, 768 x 1024, 32 x 32 points
    python -m tools.bench_masks --model vit_b                    # SAM ViT-B of random weights, encoder and all; minutes
    python -m tools.bench_masks --model vit_b --points 8
    python -m tools.bench_masks --model decoder --points 8       # SAM's decoder behind a small encoder
    python -m tools.bench_masks --size 192 192 --points 16

One thread. Every side runs in a process of its own: seconds are of its CPU, faults are the pages that the system had to
fill, memory is the peak resident size while masks are made above what was resident after one image had been encoded.
The masks of both are compared: ours with duplicates found by boxes, as the package has it, so that each has its
counterpart. Of random weights, thresholds let a tenth of the masks pass.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from densevl.benchmarking.clock import reset_peak, resident_mib
from densevl.devices import keep_memory
from densevl.proposals import packing

SCENE = Path(__file__).parents[1] / "demo" / "scenes" / "wood.png"
SIDES = ("package", "densevl, box duplicates", "densevl")
PASSED = 0.9
"""Of a random model, the quantile of predicted IoU above which masks pass."""


class Measured(NamedTuple):
    """One side's CPU seconds, minor page faults, extra memory in MiB, and masks: packed (M, bytes)."""

    seconds: float
    faults: int
    extra_mb: float
    packed: np.ndarray


def build(model: str, image: np.ndarray) -> tuple[Any, dict[str, float]]:
    """The model, and the thresholds to run it with."""
    if model == "mini-sam":
        from densevl.proposals.sam.mini_sam import AUTOMATIC, load_mini_sam

        return load_mini_sam(), dict(AUTOMATIC)
    from densevl.proposals.sam.image import SamImage

    torch.manual_seed(0)
    if model == "vit_b":
        from segment_anything import sam_model_registry

        sam = sam_model_registry["vit_b"]()
    else:
        sam = random_sam(256, 64, 128) if model == "tiny" else random_sam(1024, 256, 2048)
    sam = sam.eval().requires_grad_(False)
    height, width = image.shape[:2]
    points = np.random.default_rng(0).random((8, 1, 2)) * [width, height]
    quality = SamImage.encode(sam, image).decode(points).quality
    return sam, {"pred_iou_thresh": float(quality.quantile(PASSED)), "stability_score_thresh": 0.0}


def random_sam(side: int, channels: int, mlp: int) -> Any:
    """A SAM of random weights behind a small encoder; side 1024, channels 256 and mlp 2048 are SAM's own decoder."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    encoder = ImageEncoderViT(
        img_size=side, patch_size=16, embed_dim=64, depth=2, num_heads=2, out_chans=channels,
        use_rel_pos=True, window_size=7,
    )  # fmt: skip
    grid = (side // 16, side // 16)
    prompts = PromptEncoder(
        embed_dim=channels, image_embedding_size=grid, input_image_size=(side, side), mask_in_chans=16
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=mlp, num_heads=8)
    return Sam(encoder, prompts, MaskDecoder(transformer_dim=channels, transformer=transformer))


def measure(side: str, model: str, size: tuple[int, int], points: int) -> Measured:
    """Run one side in this process."""
    torch.set_num_threads(1)
    keep_memory()
    image = np.asarray(Image.open(SCENE).convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC))
    sam, thresholds = build(model, image)
    if side == "package":
        from segment_anything import SamAutomaticMaskGenerator

        generator = SamAutomaticMaskGenerator(sam, points_per_side=points, **thresholds)
        generator.predictor.set_image(image)
        run = generator.generate
    else:
        from densevl.proposals.sam.automatic import SamProposer

        duplicates = "box" if "box" in side else "mask"
        run = SamProposer(sam, points_per_side=points, duplicates=duplicates, **thresholds)
        run.encode(image)
    before = resident_mib("VmRSS")
    reset_peak()
    filled, started = _faults(), time.process_time()
    found = run(image)
    seconds, faults, peak = time.process_time() - started, _faults() - filled, resident_mib("VmHWM")
    if side == "package":
        rows = [packing.pack(record["segmentation"]) for record in found]
        packed = np.stack(rows) if rows else np.zeros((0, packing.row_bytes(size)), np.uint8)
    else:
        packed = found.packed
    return Measured(seconds, faults, peak - before, packed)


def main() -> None:
    """Measure all sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini-sam", choices=("mini-sam", "vit_b", "decoder", "tiny"))
    parser.add_argument("--size", type=int, nargs=2, default=(768, 1024), metavar=("H", "W"))
    parser.add_argument("--points", type=int, default=32, help="per side of the grid")
    options = parser.parse_args()
    size = (options.size[0], options.size[1])
    found = {}
    for side in SIDES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[side] = pool.apply(measure, (side, options.model, size, options.points))
    package = found["package"]
    print(f"{options.model}, {size[0]} x {size[1]}, {options.points} x {options.points} points, one thread")
    print(f"{'':24} {'CPU s':>8} {'ratio':>6} {'extra MiB':>10} {'ratio':>6} {'faults':>9} {'masks':>6}")
    for side, own in found.items():
        time_share, memory_share = own.seconds / package.seconds, own.extra_mb / package.extra_mb
        print(
            f"{side:24} {own.seconds:8.2f} {time_share:6.3f} {own.extra_mb:10.1f} {memory_share:6.3f} {own.faults:9d} "
            f"{len(own.packed):6d}"
        )
    boxed = found["densevl, box duplicates"].packed
    least = min((best_iou(mask, boxed) for mask in package.packed), default=float("nan"))
    print(f"least IoU of a mask of the package with its counterpart (box duplicates): {least:.6f}")


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def best_iou(mask: np.ndarray, others: np.ndarray) -> float:
    """The IoU of a packed mask (bytes,) with the likest of (M, bytes)."""
    both, either = packing.popcount(mask & others), packing.popcount(mask | others)
    return float((both / np.maximum(either, 1)).max(initial=0))


if __name__ == "__main__":
    main()
