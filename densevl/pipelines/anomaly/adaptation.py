"""`train_adapters`: train adapters for a frozen backbone on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from densevl.anomaly import storage
from densevl.anomaly.memory.nearest import NearestMemory
from densevl.anomaly.sizes import fit_size, shrink
from densevl.anomaly.states import THING, States
from densevl.anomaly.tokens import QUARTERS, layers_at, run
from densevl.anomaly.trained.adapters import Adapters, QueryAdapter, VisualAdapter, nearest_rows
from densevl.anomaly.trained.learning import LearnedPrompts, map_loss
from densevl.backbones import Backbone
from densevl.errors import ModelError
from densevl.images import read_image
from densevl.proposals.checks import image_mask


@dataclass(frozen=True)
class Sample:
    """A labelled image: a mask (H, W), True where anomalous (nowhere if it is normal), and a normal image."""

    image: Any
    mask: np.ndarray
    normal: Any


def train_adapters(
    backbone: Backbone,
    samples: Iterable[Sample],
    *,
    item: str = THING,
    states: States | None = None,
    layers: tuple[float | int, ...] = QUARTERS,
    temperature: float = 0.07,
    words: int = 12,
    epochs: int = 15,
    batch: int = 16,
    rate: float = 1e-3,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Adapters:
    """Train the three adapters. The backbone is frozen and sees each image once.

    The visual and textual adapters take turns, as in AdaptCLIP, and the query adapter is trained on every batch. The
    same seed gives the same adapters on the same machine.

    Args:
        samples: normal and damaged images; the features of all are held in memory. item: the noun of the prompts.
        layers: the layers the query adapter reads, as block numbers or shares of the depth. words: learned words per
            prompt.
        rate: learning rate of Adam. report: called with the number and mean loss of each epoch.

    Raises:
        ModelError: If the model is not a CLIP, or there are no samples, no damaged ones or no normal ones.
        ProposalError: If a mask differs from its image in size, or has values that are not a mask's.
    """
    tower = getattr(backbone, "tower", None)
    if tower is None:
        raise ModelError(f"model '{backbone.name}' is not a CLIP; adapters need words and patches in one space")
    numbers = layers_at(layers, tower.depth)
    side = min(tower.image_size)
    looks = [_look(backbone, tower, one, index, numbers, (side, side)) for index, one in enumerate(samples)]
    bad = sum(bool(look["mask"].any()) for look in looks)
    if not 0 < bad < len(looks):
        raise ModelError(f"{len(looks)} samples, {bad} of them damaged: adapters need normal and damaged ones")
    data = {key: [look[key] for look in looks] for key in looks[0]}
    torch.manual_seed(seed)
    static = (states or States()).prototypes(backbone.encode_text, item).to(backbone.device)
    widths = [layer.shape[-1] for layer in looks[0]["queries"]]
    prompts = LearnedPrompts(backbone, item, min(words, backbone.context_length - 6), seed)
    adapters = Adapters(
        VisualAdapter(backbone.embed_dim).to(backbone.device),
        QueryAdapter(widths).to(backbone.device),
        static,
        static,
        numbers,
        temperature,
        backbone.name,
        storage.fingerprint(backbone),
    )
    modules = (adapters.visual, prompts, adapters.query)
    optimizers = [torch.optim.Adam(module.parameters(), lr=rate) for module in modules]
    generator = torch.Generator().manual_seed(seed)
    adapters.query.train()
    for epoch in range(epochs):
        losses = []
        for number, rows in enumerate(torch.randperm(len(looks), generator=generator).split(batch)):
            if len(rows) * data["mask"][0].numel() < 2:
                continue
            picked = {key: _stack([values[row] for row in rows]) for key, values in data.items()}
            for turn in ((number % 2), 2):  # visual or textual, and the query adapter
                image, grid = _logits(adapters, prompts, turn, picked)
                is_bad = picked["mask"].flatten(1).any(dim=1).float()
                loss = map_loss(grid, picked["mask"]) + F.binary_cross_entropy_with_logits(image, is_bad)
                optimizers[turn].zero_grad()
                loss.backward()
                optimizers[turn].step()
                losses.append(float(loss.detach()))
        report(epoch, sum(losses) / max(1, len(losses)))
    with torch.no_grad():
        adapters.learned = prompts()
    return adapters.to(backbone.device)


def _logits(
    adapters: Adapters, prompts: LearnedPrompts, turn: int, picked: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the image and map logits of one adapter."""
    if turn == 0:
        image, patch = adapters.visual(picked["image"], picked["patch"])
        return adapters.margin(image, adapters.static), adapters.margin(patch, adapters.static)
    if turn == 1:
        words = prompts()
        return adapters.margin(picked["image"], words), adapters.margin(picked["patch"], words)
    grid, image = adapters.query(picked["queries"], picked["normals"])
    return image, grid


@torch.no_grad()
def _look(
    backbone: Backbone, tower: Any, sample: Sample, index: int, layers: tuple[int, ...], size: tuple[int, int]
) -> dict[str, Any]:
    """Compute everything the adapters read of one image at the training size, and its mask at that size."""
    rgb, normal = read_image(sample.image), read_image(sample.normal)
    mask = image_mask(sample.mask, rgb.shape[:2], index)
    fed = fit_size(*size, min(size), backbone.patch_size)
    pixels = torch.stack([backbone.normalize(shrink(picture, fed)) for picture in (rgb, normal)])
    seen = run(tower, pixels)
    recipe = backbone.resolve(None)
    dense = seen.rewired(recipe).features if recipe is not None else seen.patches(tower.depth, "joint")
    queries, normals = [], []
    for layer in layers:
        unit = F.normalize(seen.patches(layer), dim=1).permute(0, 2, 3, 1)
        queries.append(unit[0])
        normals.append(nearest_rows(unit[:1], NearestMemory.of([unit[1].flatten(0, 1)]))[0])
    small = F.adaptive_max_pool2d(torch.from_numpy(mask)[None].float(), fed)[0] > 0
    return {
        "image": seen.image()[0],
        "patch": dense[0].float().permute(1, 2, 0),
        "queries": queries,
        "normals": normals,
        "mask": small.to(pixels.device),
    }


def _stack(values: list[Any]) -> Any:
    """Stack tensors, or stack lists of tensors element by element."""
    if isinstance(values[0], torch.Tensor):
        return torch.stack(values)
    return [torch.stack(list(place)) for place in zip(*values, strict=True)]
