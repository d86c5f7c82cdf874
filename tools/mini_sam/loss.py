"""The loss: two rounds of prompts as in SAM's training, and on every mask focal, dice and predicted IoU.

Shape letters: P prompts, M masks of a prompt (the single one, then three guesses), L low-resolution side, C channels.
In the first round half of the prompts are one point, the others a box; in the second some of them get one more point
where the mask was wrong, and half of these the mask itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from tools.mini_sam.data import Batch
from tools.mini_sam.model import decode, encode_prompts

FOCAL, DICE, IOU = 20.0, 1.0, 1.0
SPREAD = 0.1  # share of the loss spread over all three guesses, so that each learns
CORRECTED = 0.5  # share of the prompts that enter the second round


def focal(logits: torch.Tensor, truth: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """Focal loss against soft truth, mean over the last two axes: (P, M, L, L) and (P, 1, L, L) to (P, M)."""
    truth = truth.expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (entropy * (logits.sigmoid() - truth).abs() ** gamma).mean((-2, -1))


def dice(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """One minus the overlap of probabilities and truth: (P, M, L, L) and (P, 1, L, L) to (P, M)."""
    shares = logits.sigmoid()
    both = (shares * truth).sum((-2, -1))
    return 1 - (2 * both + 1) / (shares.sum((-2, -1)) + truth.sum((-2, -1)) + 1)


def overlap(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """IoU of logits above 0 and truth above half: (P, M, L, L) and (P, 1, L, L) to (P, M)."""
    found, wanted = logits > 0, truth > 0.5
    return (found & wanted).sum((-2, -1)) / (found | wanted).sum((-2, -1)).clamp_min(1)


def mask_loss(logits: torch.Tensor, predicted: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """Losses of a round: logits (P, 4, L, L), predicted IoU (P, 4), truth (P, L, L).

    Returns:
        "mask" and "quality", scalars with gradient, and "best" (P,): the IoU of the guess with the best predicted one.
    """
    truth = truth[:, None]
    each = FOCAL * focal(logits, truth) + DICE * dice(logits, truth)
    guesses = (1 - SPREAD) * each[:, 1:].amin(1) + SPREAD * each[:, 1:].mean(1)
    real = overlap(logits.detach(), truth)
    best = real[:, 1:].gather(1, predicted[:, 1:].argmax(1, keepdim=True))[:, 0]
    return {"mask": (each[:, 0] + guesses).mean(), "quality": F.mse_loss(predicted, real), "best": best}


def wrong_points(
    logits: torch.Tensor, truth: torch.Tensor, cell: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a pixel where a mask (P, L, L) is wrong: points (P, 1, 2) and labels (P, 1), 1 where it was missing.

    A mask without a fault gets a point inside it. `cell` is the side of a low-resolution pixel in pixels.
    """
    wanted = truth > 0.5
    weight = ((logits > 0) != wanted).float() + 1e-6 * wanted + 1e-12
    index = torch.multinomial(weight.flatten(1), 1, generator=generator)
    side = truth.shape[-1]
    points = torch.stack([index % side, index // side], dim=-1) * cell + (cell - 1) / 2
    return points, wanted.flatten(1).gather(1, index).long()


def objective(sam: Any, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Run both rounds on a batch; return "loss" and its parts, and the IoU of points, boxes and corrected masks."""
    images = sam.image_encoder(batch.pixels)[batch.image]
    half = len(batch.image) // 2
    order = torch.randperm(len(batch.image), generator=generator)
    images, truth = images[order], batch.truth[order]
    points, boxes = batch.points[order[:half]], batch.boxes[order[half:]]
    logits, predicted = _first(sam, images, points, boxes)
    first = mask_loss(logits, predicted, truth)
    guess = logits[torch.arange(len(logits)), 1 + predicted[:, 1:].argmax(1)].detach()
    few = round(half * CORRECTED)
    again = torch.cat([torch.arange(few), half + torch.arange(few)])
    more, labels = wrong_points(guess[again], truth[again], batch.pixels.shape[-1] / truth.shape[-1], generator)
    corrected = _second(sam, images[again], (points[:few], boxes[:few]), (more, labels), guess[again])
    second = mask_loss(*corrected, truth[again])
    mask, quality = first["mask"] + CORRECTED * second["mask"], first["quality"] + CORRECTED * second["quality"]
    return {
        "loss": mask + IOU * quality,
        "mask": mask,
        "quality": quality,
        "point": first["best"][:half].mean(),
        "box": first["best"][half:].mean(),
        "corrected": second["best"].mean(),
    }


def _first(
    sam: Any, images: torch.Tensor, points: torch.Tensor, boxes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode single points, then boxes; the package pads a point, so both are two tokens."""
    labels = torch.ones(points.shape[:2], dtype=torch.long)
    point, dense = encode_prompts(sam, (points, labels), None, None)
    box, _ = encode_prompts(sam, None, boxes, None)
    return decode(sam, images, torch.cat([point, box]), dense[:1])


def _second(
    sam: Any,
    images: torch.Tensor,
    prompts: tuple[torch.Tensor, torch.Tensor],
    more: tuple[torch.Tensor, torch.Tensor],
    guess: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode points and boxes (few of each) with one more point; every second one also gets its first mask."""
    (points, boxes), (extra, labels), few = prompts, more, len(prompts[0])
    point_labels = torch.cat([torch.ones_like(labels[:few]), labels[:few]], dim=1)
    point, _ = encode_prompts(sam, (torch.cat([points, extra[:few]], dim=1), point_labels), None, None)
    box, plain = encode_prompts(sam, (extra[few:], labels[few:]), boxes, None)
    _, masked = encode_prompts(sam, None, None, guess[:, None])
    seen = (torch.arange(len(guess)) % 2 == 0)[:, None, None, None]
    return decode(sam, images, torch.cat([point, box]), torch.where(seen, masked, plain[:1]))
