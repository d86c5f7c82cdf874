"""Damage maps of bare surfaces: text on windows (WinCLIP, CVPR 2023), one-shot patch memory, and their sum.

Shape letters: B images, N tokens (CLS first), D width, E joint space, h patch rows and columns, W windows.
A window is a square of patch tokens that runs through the tower alone with CLS, positions kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from densevl.backbones.mini import Mini
from tools.mini.data import normalized
from tools.mini.metrics import auroc
from tools.mini.prompts import DAMAGED_STATES, NORMAL_STATES
from tools.render.captions import DEFECTS
from tools.render.surfaces import SurfaceMaker, solid_textures
from tools.render.textures import all_textures

WINDOWS = (2, 3, 4)  # sides in patches
TEMPERATURE = 0.07
MEMORY_LAYER = 2
SEED = 90001


@torch.no_grad()
def evaluate_anomaly(model: Mini, *, images: int = 4, seed: int = SEED) -> dict[str, dict[str, float]]:
    """Pixel AUROC in per cent: per kind of damage the mean over materials, and "seen" (without cracks), for each score.

    Args:
        model: the model to evaluate.
        images: damaged images per material and kind; one flawless image of the same surface is the reference.
        seed: of the surfaces.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for texture in solid_textures():
        maker = SurfaceMaker(model.protocol.crop or 96, seed=seed, textures=(texture,), defects=DEFECTS, variants=1)
        reference = normalized(maker.of(texture, None).image[None])
        margin_E = _margin(model, all_textures()[texture].surface)
        for kind in DEFECTS:
            scenes = [maker.of(texture, kind) for _ in range(images)]
            pixels = normalized(np.stack([scene.image for scene in scenes]))
            truth = np.stack([scene.defect for scene in scenes]).ravel()
            windows, memory = window_map(model, pixels, margin_E), memory_map(model, pixels, reference)
            both = windows / windows.mean() + memory / memory.mean()
            for name, scores in (("windows", windows), ("memory", memory), ("sum", both)):
                full = F.interpolate(scores[:, None], size=pixels.shape[-2:], mode="bilinear", align_corners=False)
                found[name][kind].append(auroc(full.numpy().ravel(), truth))
    return {name: _means(kinds) for name, kinds in found.items()}


def _means(kinds: dict[str, list[float]]) -> dict[str, float]:
    means = {kind: 100 * float(np.mean(values)) for kind, values in kinds.items()}
    return {**means, "seen": float(np.mean([means[kind] for kind in DEFECTS if kind != "crack"]))}


def _margin(model: Mini, surface: str) -> torch.Tensor:
    """Direction from "sound" to "damaged" for a surface: (E,), a difference of unit vectors."""
    unit = [
        F.normalize(
            model.encode_text(
                [t.replace("{}", s.replace("{}", surface)) for s in group for t in ("{}", "a photo of a {}")]
            ),
            dim=-1,
        ).mean(0)
        for group in (NORMAL_STATES, DAMAGED_STATES)
    ]
    return F.normalize(unit[1], dim=0) - F.normalize(unit[0], dim=0)


def window_map(model: Mini, pixels: torch.Tensor, margin_E: torch.Tensor) -> torch.Tensor:
    """Probability of damage (B, h, h): harmonic mean over the windows that cover a patch and over `WINDOWS`."""
    visual: Any = model.model.visual
    grid = pixels.shape[-1] // model.patch_size
    x_BND = model.tower.embed(pixels, "size")
    inverse = torch.zeros(len(pixels), grid, grid)
    for side in WINDOWS:
        index_Wn = torch.stack(list(_windows(grid, side)))
        patches = x_BND[:, 1:][:, index_Wn]
        cls = x_BND[:, None, :1].expand(-1, len(index_Wn), -1, -1)
        tokens = visual.transformer(torch.cat([cls, patches], dim=2).flatten(0, 1))[:, 0]
        features = F.normalize(visual.ln_post(tokens) @ visual.proj, dim=-1).unflatten(0, (len(pixels), -1))
        one_over_p = 1 + torch.exp(-(features @ margin_E) / TEMPERATURE)
        total, hits = torch.zeros(len(pixels), grid * grid), torch.zeros(grid * grid)
        for window, cells in enumerate(index_Wn):
            total[:, cells] += one_over_p[:, window, None]
            hits[cells] += 1
        inverse += (total / hits).unflatten(1, (grid, grid)) / len(WINDOWS)
    return 1 / inverse


def memory_map(model: Mini, pixels: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Cosine distance (B, h, h) of every patch to the nearest patch of the reference, after block `MEMORY_LAYER`."""
    visual: Any = model.model.visual
    grid = pixels.shape[-1] // model.patch_size
    x_BND = model.tower.embed(torch.cat([reference, pixels]), "size")
    for block in visual.transformer.resblocks[:MEMORY_LAYER]:
        x_BND = block(x_BND)
    unit = F.normalize(x_BND[:, 1:], dim=-1)
    nearest = (unit[1:] @ unit[0].T).amax(dim=-1)
    return (1 - nearest).unflatten(1, (grid, grid))


def _windows(grid: int, side: int) -> Iterator[torch.Tensor]:
    cells = torch.arange(grid * grid).view(grid, grid)
    for top in range(grid - side + 1):
        for left in range(grid - side + 1):
            yield cells[top : top + side, left : left + side].flatten()
