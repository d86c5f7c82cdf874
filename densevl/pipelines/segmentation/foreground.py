"""Background "foreground": nothing where CLIP-DINOiser's second head sees no object (Wysoczanska et al., ECCV 2024)."""

from __future__ import annotations

import torch

from densevl.errors import RecipeError
from densevl.inference import WindowGrid, class_scores

SURE, SURE_SCALE = 0.99, 100.0  # probability of a string above which a patch is not background


def objects(
    front: torch.Tensor, scores: torch.Tensor, windows: WindowGrid, classes: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Return where CLIP-DINOiser sees an object or is sure of a string: bool (H, W); see `Background.foreground`.

    Args:
        front: (1, Y, X, 1), the objectness of each patch, from 0 to 1. scores: (1, Y, X, T) on the same windows.
        classes: (T,), class of each string. size: (H, W) of the photo.

    At patches where neither holds, background has probability 1 and competes with the classes after resizing.
    """
    if front.shape[:3] != scores.shape[:3]:
        raise RecipeError("background 'foreground' needs recipe 'dinoiser', whose scores are on CLIP's own patches")
    p = (SURE_SCALE * scores).softmax(dim=-1)
    nowhere = (p.amax(dim=-1, keepdim=True) < SURE) & (front <= 0.5).to(p.device)
    count = int(classes.max()) + 1
    plan = windows.plan(*size)
    columns, owners = torch.cat([p, nowhere.to(p)], dim=-1), torch.cat([classes, classes.new_tensor([count])])
    volume = class_scores(columns, plan, owners, count + 1)[0]
    return volume[:-1].amax(dim=0) > volume[-1]
