"""What results say besides what was found, in the same sentences everywhere, so that a run prints each once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from densevl.backbones import Backbone
from densevl.backbones.reach import listed
from densevl.images.blank import is_blank
from densevl.images.drawn import is_drawn

LOST = 0.005  # share of a picture: a class that had more and is gone was no speckle


def shows_nothing(backbone: Backbone, rgb: np.ndarray) -> bool:
    """Whether a model for photos is given a picture without features, in which it would see things all the same."""
    return backbone.pictures == "photos" and is_blank(rgb)


def of_picture(backbone: Backbone, rgb: np.ndarray) -> tuple[str, ...]:
    """A warning that a model for photos is given a drawing, or a picture without features.

    The other way round cannot be told from pixels reliably.
    """
    if shows_nothing(backbone, rgb):
        return (
            "the picture shows one colour, or a few that fade into each other: model "
            f"'{backbone.name}' has nothing to recognise there, so a label there is no finding",
        )
    if backbone.pictures != "photos" or not is_drawn(rgb):
        return ()
    return (
        f"the picture looks drawn, and model '{backbone.name}' was trained on photos: take model 'mini', which is for "
        "drawings (--model mini), or a CLIP model",
    )


def is_flat(scores: torch.Tensor) -> bool:
    """Whether several strings score alike everywhere, so that none wins; scores (..., T), T strings."""
    return scores.numel() > 0 and scores.shape[-1] > 1 and bool((scores == scores[..., :1]).all())


def of_scores(scores: torch.Tensor) -> tuple[str, ...]:
    """A warning that no string wins; scores (..., T), T strings."""
    if not is_flat(scores):
        return ()
    return (f"all {scores.shape[-1]} words score alike everywhere: the label is the first of them, not a finding",)


def of_segments(empty: bool, pooled: bool) -> tuple[str, ...]:
    """A warning that a photo has no segments; pooled: the recipe reads nothing outside of them."""
    if not empty:
        return ()
    if pooled:
        return ("no region was found in the photo, and the recipe names regions alone: there is nothing in it",)
    return ("no region was found in the photo, so the labels are those of a photo without segments",)


def of_labels(labels: np.ndarray, what: str = "pixel") -> tuple[str, ...]:
    """What to try if no pixel (or region) has a label; labels below 0 are nothing, none at all is no result."""
    if not labels.size or (labels >= 0).any():
        return ()
    return (
        f"no {what} was given a label; if what you look for is there: other words for it, background 'none' "
        "(--background none) or a lower threshold, or another model (densevl models)",
    )


def of_vote(before: torch.Tensor, after: torch.Tensor, names: Sequence[str]) -> tuple[str, ...]:
    """A warning of the classes of which a vote of clusters left no pixel; labels of the same pixels, -1 for nothing."""
    had = torch.bincount(before.flatten() + 1, minlength=len(names) + 1)[1:] / before.numel()
    has = torch.bincount(after.flatten() + 1, minlength=len(names) + 1)[1:]
    lost = [name for name, share, left in zip(names, had.tolist(), has.tolist(), strict=True) if share > LOST > left]
    if not lost:
        return ()
    return (
        f"the vote of the recipe's clusters took every pixel of {listed(lost)}: refine 'none' (--refine none) leaves "
        "the vote out",
    )
