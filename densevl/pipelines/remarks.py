"""Warnings of results. The sentences are the same everywhere, so that a run prints each only once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from densevl.backbones import Backbone
from densevl.backbones.reach import listed
from densevl.images.blank import is_blank
from densevl.images.drawn import is_drawn

LOST = 0.005  # share of a picture: a class that had more than this was not just a speckle


def shows_nothing(backbone: Backbone, rgb: np.ndarray) -> bool:
    """Return whether a photo model gets a picture without features, where it would still see things."""
    return backbone.pictures == "photos" and is_blank(rgb)


def of_picture(backbone: Backbone, rgb: np.ndarray) -> tuple[str, ...]:
    """Warn if a photo model gets a drawing, or a picture without features.

    The opposite case cannot be recognised reliably from pixels.
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
    """Return whether all strings score the same everywhere, so that none wins; scores (..., T), T strings."""
    return scores.numel() > 0 and scores.shape[-1] > 1 and bool((scores == scores[..., :1]).all())


def of_scores(scores: torch.Tensor) -> tuple[str, ...]:
    """Warn if no string wins; scores (..., T), T strings."""
    if not is_flat(scores):
        return ()
    return (f"all {scores.shape[-1]} words score the same everywhere: the label is the first of them, not a finding",)


def of_segments(empty: bool, pooled: bool) -> tuple[str, ...]:
    """Warn if a photo has no segments. `pooled`: the recipe reads nothing outside of segments."""
    if not empty:
        return ()
    if pooled:
        return ("no region was found in the photo, and the recipe labels only regions: no pixel has a label",)
    return ("no region was found in the photo, so the photo was labelled without segments",)


def of_labels(labels: np.ndarray, what: str = "pixel") -> tuple[str, ...]:
    """Advise what to try if no pixel (or region) has a label. Labels below 0 mean nothing; no labels, no advice."""
    if not labels.size or (labels >= 0).any():
        return ()
    return (
        f"no {what} was given a label; if what you look for is there, try other words for it, background 'none' "
        "(--background none), a lower threshold, or another model (densevl models)",
    )


def of_vote(before: torch.Tensor, after: torch.Tensor, names: Sequence[str]) -> tuple[str, ...]:
    """Warn about classes that lost all their pixels in a vote of clusters. Labels are of the same pixels, or -1."""
    had = torch.bincount(before.flatten() + 1, minlength=len(names) + 1)[1:] / before.numel()
    has = torch.bincount(after.flatten() + 1, minlength=len(names) + 1)[1:]
    lost = [name for name, share, left in zip(names, had.tolist(), has.tolist(), strict=True) if share > LOST > left]
    if not lost:
        return ()
    return (
        f"the vote of the recipe's clusters took every pixel of {listed(lost)}: leave the vote out with refine 'none' "
        "(--refine none)",
    )
