"""Time our automatic masks against the package's `SamAutomaticMaskGenerator`, on the same model and image.

    python -m tools.bench_masks                                  # mini-sam, 768 x 1024, 32 x 32 points
    python -m tools.bench_masks --model vit_b                    # SAM ViT-B of random weights, encoder and all; minutes
    python -m tools.bench_masks --model vit_b --points 8
    python -m tools.bench_masks --model decoder --points 8       # SAM's decoder behind a small encoder
    python -m tools.bench_masks --size 192 192 --points 16

One thread. Each side runs in its own process: seconds are CPU time, "encoding" is the image encoder's share, faults are
page faults, memory is the peak resident size during mask generation above the resident size after the image was encoded
once. Each mask of the package is looked up among ours. For mini-sam duplicates are then found by boxes, as in the
package; masks of random weights lie all over the image, so none is dropped as a duplicate, and thresholds let a tenth
of them pass. `--keep-memory` runs all with `densevl.keep_memory()`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from densevl.benchmarking.clock import minor_faults, reset_peak, resident_mib
from densevl.devices import keep_memory
from densevl.proposals import packing

SCENE = Path(__file__).parents[1] / "demo" / "scenes" / "wood.png"
ALL_KEPT = {"package": {"box_nms_thresh": 2.0}, "densevl": {"duplicates": "none"}}
SIDES = {"package": {}, "densevl, box duplicates": {"duplicates": "box"}, "densevl": {"duplicates": "mask"}}
"""Settings of each side; those of the package begin with the one whose masks are compared."""
PASSED = 0.9
"""For a random model, masks pass above this quantile of predicted IoU."""


class Measured(NamedTuple):
    """One side's CPU seconds, those of encoding, page faults, extra memory in MiB, and masks: packed (M, bytes)."""

    seconds: float
    encoding: float
    faults: int
    extra_mb: float
    packed: np.ndarray


def build(model: str, image: np.ndarray) -> tuple[Any, dict[str, float]]:
    """Return the model and its thresholds."""
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
    """Return a SAM of random weights behind a small encoder; side 1024, channels 256 and mlp 2048 are those of SAM."""
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


def sides_of(model: str) -> dict[str, dict[str, Any]]:
    """Return the sides to compare, each with its settings."""
    return SIDES if model == "mini-sam" else ALL_KEPT


def measure(side: str, model: str, size: tuple[int, int], points: int, keep: bool = False) -> Measured:
    """Run one side in this process."""
    torch.set_num_threads(1)
    if keep:
        keep_memory()
    image = np.asarray(Image.open(SCENE).convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC))
    sam, thresholds = build(model, image)
    settings: dict[str, Any] = {"points_per_side": points, **thresholds, **sides_of(model)[side]}
    if side == "package":
        from segment_anything import SamAutomaticMaskGenerator

        generator = SamAutomaticMaskGenerator(sam, **settings)
        encode, run = generator.predictor.set_image, generator.generate
    else:
        from densevl.proposals.sam.automatic import SamProposer

        run = SamProposer(sam, **settings)
        encode = run.encode
    started = time.process_time()
    encode(image)
    encoding = time.process_time() - started
    reset_peak()
    before = resident_mib("VmRSS")
    filled, started = minor_faults() or 0, time.process_time()
    found = run(image)
    seconds, faults, peak = time.process_time() - started, (minor_faults() or 0) - filled, resident_mib("VmHWM")
    if side == "package":
        rows = [packing.pack(record["segmentation"]) for record in found]
        packed = np.stack(rows) if rows else np.zeros((0, packing.row_bytes(size)), np.uint8)
    else:
        packed = found.packed
    return Measured(seconds, encoding, faults, peak - before, packed)


def main() -> None:
    """Measure all sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini-sam", choices=("mini-sam", "vit_b", "decoder", "tiny"))
    parser.add_argument("--size", type=int, nargs=2, default=(768, 1024), metavar=("H", "W"))
    parser.add_argument("--points", type=int, default=32, help="per side of the grid")
    parser.add_argument("--keep-memory", action="store_true", help="tell the allocator to keep freed memory")
    options = parser.parse_args()
    size = (options.size[0], options.size[1])
    found = {}
    for side in sides_of(options.model):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[side] = pool.apply(measure, (side, options.model, size, options.points, options.keep_memory))
    package = found["package"]
    print(f"{options.model}, {size[0]} x {size[1]}, {options.points} x {options.points} points, one thread")
    print(
        f"{'':24} {'CPU s':>8} {'ratio':>6} {'encoding':>9} {'extra MiB':>10} {'ratio':>6} {'faults':>9} {'masks':>6}"
    )
    for side, own in found.items():
        time_share, memory_share = own.seconds / package.seconds, own.extra_mb / package.extra_mb
        print(
            f"{side:24} {own.seconds:8.2f} {time_share:6.3f} {own.encoding:9.2f} {own.extra_mb:10.1f} "
            f"{memory_share:6.3f} {own.faults:9d} {len(own.packed):6d}"
        )
    _, first, *_ = found
    shares = [best_iou(mask, found[first].packed) for mask in package.packed]
    print(f"IoU of the package's masks with the likest of '{first}': least {min(shares, default=float('nan')):.6f}")


def best_iou(mask: np.ndarray, others: np.ndarray) -> float:
    """Return the IoU of a packed mask (bytes,) with the most similar of (M, bytes)."""
    both, either = packing.popcount(mask & others), packing.popcount(mask | others)
    return float((both / np.maximum(either, 1)).max(initial=0))


if __name__ == "__main__":
    main()
