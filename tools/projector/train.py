"""Training of two projectors on stored pairs, and the similarity of two towers before it.

Shape letters: B pairs per batch, N pairs, D and E widths of the towers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from densevl.backbones.projected.projector import DROPOUT, Joined, Projector
from densevl.errors import DensevlError
from tools.arguments import COUNT, RATE, SEED, number, option, still_finite
from tools.projector.pairs import Pairs

SCALE = math.exp(2.6592)
LAYERS, WIDTH = number(int, 0, 16), number(int, 1, 16384)


@dataclass(frozen=True)
class Plan:
    """Training settings of projectors; the defaults are ShareLock's.

    Attributes:
        image_layers, text_layers: linear layers of each side; 0 keeps its vectors, and the other side gets their width.
        width: of hidden layers. joint: of the joint space if both sides have layers.
        steps: of training. warm_up: steps until the peak rate. batch: pairs per step, at most all.
        rate: learning rate of Adam, with cosine decay. decay: of weights. seed: everything random follows from it.
    """

    image_layers: int = option(0, "linear layers of the image side; 0 keeps its vectors", LAYERS)
    text_layers: int = option(4, "the same of the text side", LAYERS)
    width: int = option(4096, "of hidden layers", WIDTH)
    joint: int = option(512, "width of the joint space where both sides have layers", WIDTH)
    dropout: float = option(DROPOUT, "between layers", number(float, 0, below=1))
    steps: int = option(5000, "of training", COUNT)
    warm_up: int = option(150, "steps until the rate is at its highest", number(int, 0))
    batch: int = option(16384, "pairs a step, at most all", number(int, 2))
    rate: float = option(1e-3, "highest learning rate", RATE)
    decay: float = option(1e-4, "of weights", number(float, 0, 1))
    seed: int = option(0, "everything random follows from it", SEED)


def contrast(image_BE: torch.Tensor, text_BE: torch.Tensor, scale: float = SCALE) -> torch.Tensor:
    """Symmetric cross entropy of pairs against all others of the batch (CLIP), for vectors of any length."""
    logits_BB = scale * F.normalize(image_BE, dim=1) @ F.normalize(text_BE, dim=1).T
    target = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, target) + F.cross_entropy(logits_BB.T, target)) / 2


def projectors(image: int, text: int, plan: Plan) -> tuple[Projector, Projector]:
    """Return both sides for towers of these widths, untrained.

    Raises:
        DensevlError: If no side has layers.
    """
    layers = plan.image_layers, plan.text_layers
    if layers == (0, 0):
        raise DensevlError("neither side has layers, so nothing is trained; give --image-layers or --text-layers")
    joint = plan.joint if all(layers) else (text if layers[0] else image)
    made = [
        Projector([tower, *[plan.width] * (count - 1), joint] if count else [tower], plan.dropout)
        for tower, count in zip((image, text), layers, strict=True)
    ]
    return made[0], made[1]


def train(pairs: Pairs, plan: Plan) -> tuple[Joined, list[float]]:
    """Train on stored pairs; return the projectors in eval mode and the losses.

    Raises:
        DensevlError: If no side has layers, or the training diverged.
    """
    torch.manual_seed(plan.seed)
    image, text = projectors(pairs.image.shape[1], pairs.text.shape[1], plan)
    learned = torch.nn.ModuleList([image, text]).train()
    optimiser = torch.optim.Adam(learned.parameters(), lr=plan.rate, weight_decay=plan.decay)
    losses = []
    for step in range(plan.steps):
        fallen = 0.5 + 0.5 * math.cos(math.pi * step / plan.steps)
        optimiser.param_groups[0]["lr"] = plan.rate * min((step + 1) / max(1, plan.warm_up), fallen)
        rows = torch.randperm(len(pairs.image))[: plan.batch]
        loss = contrast(image(pairs.image[rows].float()), text(pairs.text[rows].float()))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        still_finite(step + 1, losses[-1])
    still_finite(plan.steps, losses[-1], learned.state_dict().values())
    learned.eval().requires_grad_(False)
    return Joined(image, text, pairs.vision, pairs.words, pairs.stamp, SCALE), losses


def alikeness(x_ND: torch.Tensor, y_NE: torch.Tensor) -> float:
    """Linear CKA of two towers on pairs: |X'Y|^2 / (|X'X| |Y'Y|), centred; 0 to 1 (Kornblith et al., ICML 2019)."""
    x, y = (part.double() - part.double().mean(dim=0) for part in (x_ND, y_NE))
    return float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()).clamp_min(1e-30))
