"""A head on a frozen tower that reproduces a CLIP's patches, in SAM-CLIP's form (Wang et al., CVPR Workshops 2024).

The tower stays frozen, so its other readers, such as SAM's masks, get the same bits. Only the head is trained, by the
cosine to the teacher's patches and to its vector of the whole picture; the words are the teacher's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch.nn import functional as F

from densevl.backbones.projected.projector import HEAD, Head, Joined, Projector
from densevl.backbones.projected.towers import ClipVision, Vision, Words, stamp
from densevl.errors import DensevlError, ImageError
from densevl.files import shown
from densevl.images import list_images
from tools.arguments import COUNT, RATE, SEED, number, option, read_or_skip, still_finite


@dataclass(frozen=True)
class HeadPlan:
    """Training settings of a head.

    Attributes:
        blocks: of the head. width: inside it. steps: of training. batch: pictures per step.
        rate: learning rate of Adam, with cosine decay. seed: everything random follows from it.
    """

    blocks: int = option(2, "of the head", number(int, 1, 64))
    width: int = option(128, f"inside it, a multiple of {HEAD}", number(int, HEAD, 8192))
    steps: int = option(300, "of training", COUNT)
    batch: int = option(32, "pictures a step, at most all", COUNT)
    rate: float = option(1e-3, "highest learning rate", RATE)
    seed: int = option(0, "everything random follows from it", SEED)


class Seen(NamedTuple):
    """Features of pictures from both models: maps (M, D, h, w) and (M, E, h, w), vectors (M, D) and (M, E)."""

    student: torch.Tensor
    teacher: torch.Tensor
    student_whole: torch.Tensor
    teacher_whole: torch.Tensor


def look(folder: Path, student: Vision, teacher: ClipVision) -> Seen:
    """Encode the pictures of a folder with both models, each at its size for whole images.

    Raises:
        ImageError: If there are no pictures, or none can be read.
    """
    rows: list[tuple[torch.Tensor, ...]] = []
    files = list_images(folder)
    for path in files:
        if (rgb := read_or_skip(path)) is None:
            continue
        picture = Image.fromarray(rgb)
        own, given = student.preprocess(picture)[None], teacher.preprocess(picture)[None]
        mine = student.dense(own).features.float()
        theirs = teacher.dense(given, recipe=teacher.backbone.default_recipe).features.float()
        size = (mine.shape[2], mine.shape[3])
        rows.append((mine, F.interpolate(theirs, size, mode="bilinear"), student.whole(own), teacher.whole(given)))
    if not rows:
        raise ImageError(f"none of the {len(files)} pictures in {shown(folder)} can be read")
    return Seen(*(torch.cat(part).float().cpu() for part in zip(*rows, strict=True)))


def away(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return 1 - cosine over the second axis, on average."""
    return 1 - F.cosine_similarity(x, y, dim=1).mean()


def distil(seen: Seen, plan: HeadPlan) -> tuple[Head, list[float]]:
    """Train a head on stored features; return it in eval mode, and the losses.

    Raises:
        DensevlError: If the width is impossible, or the training diverged.
    """
    if plan.width % HEAD:
        raise DensevlError(f"width is {plan.width}; it is a multiple of {HEAD}")
    torch.manual_seed(plan.seed)
    head = Head((seen.student.shape[1], plan.width, seen.teacher.shape[1]), plan.blocks).train()
    optimiser = torch.optim.Adam(head.parameters(), lr=plan.rate)
    losses = []
    for step in range(plan.steps):
        optimiser.param_groups[0]["lr"] = plan.rate * (0.5 + 0.5 * math.cos(math.pi * step / plan.steps))
        rows = torch.randperm(len(seen.student))[: plan.batch]
        loss = away(head.places(seen.student[rows]), seen.teacher[rows])
        loss = loss + 0.1 * away(head(seen.student_whole[rows]), seen.teacher_whole[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        still_finite(step + 1, losses[-1])
    still_finite(plan.steps, losses[-1], head.state_dict().values())
    return head.eval().requires_grad_(False), losses


def joined(head: Head, names: tuple[str, str], student: Vision, teacher: ClipVision, words: Words) -> Joined:
    """Return the head with the teacher's own words, for `projector.write`; `names` are of student and teacher."""
    same = Projector([head.widths[-1]]).eval()
    return Joined(head, same, *names, stamp(student, words), float(teacher.backbone.logit_scale))
