"""Prepare a photo for a model: choose the protocol, resize the photo, and place its windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

import numpy as np
import torch

from densevl.anomaly.sizes import shrink
from densevl.backbones import Backbone, InferenceProtocol
from densevl.errors import ProtocolError, suggest
from densevl.images import keep_ratio_size, resize
from densevl.inference import WindowGrid
from densevl.recipes import Recipe
from densevl.weights import require_finite

BATCH = 32  # whole pictures per pass
PLANS = ("tiles", "sliding", "whole")
"""Window layouts by name: even windows that hardly overlap; half-overlapping ones, as in papers; one for the image."""


class Embeds(Protocol):
    """A model that embeds whole pictures: a `Backbone`, or a substitute with views of its own."""

    name: str

    @property
    def picture_size(self) -> tuple[int, int]: ...

    def normalize(self, image: np.ndarray) -> torch.Tensor: ...

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor: ...


def settle(
    given: InferenceProtocol | Mapping[str, Any] | str | None, own: InferenceProtocol, recipe: Recipe | None
) -> InferenceProtocol:
    """Return the protocol given, or the model's own with changes. Recipes that stitch get windows on one patch grid.

    Args:
        given: an `InferenceProtocol`; or a dict of fields to change, in which "plan" may name one of `PLANS`; or only
            the name of a plan.
        own: the model's protocol. recipe: the recipe that will run.

    Raises:
        ProtocolError: If a field or plan does not exist, or a value is impossible.
    """
    known = [field.name for field in fields(InferenceProtocol)]
    if not isinstance(given, InferenceProtocol):
        changes = dict({"plan": given} if isinstance(given, str) else given or {})
        plan = changes.pop("plan", None)
        unknown = set(changes) - set(known)
        if unknown:
            raise ProtocolError(
                f"a protocol has no field '{min(unknown)}'; its fields are {', '.join(known)}, and plan"
            )
        given = replace(own, **{**_windows(plan, changes.get("crop", own.crop)), **changes})
    return replace(given, blend="patch") if recipe is not None and recipe.stitch is not None else given


def _windows(plan: str | None, crop: int | None) -> dict[str, Any]:
    """Return the fields that a plan sets."""
    if plan is None:
        return {}
    if plan not in PLANS:
        raise ProtocolError(f"no plan '{plan}'{suggest(str(plan), PLANS)}; the plans are {', '.join(PLANS)}")
    if plan == "whole":
        return {"crop": None}
    return {"stride": None if plan == "tiles" or crop is None else max(1, crop // 2)}


def fed_size(size: tuple[int, int], protocol: InferenceProtocol, patch: int, scale: float = 1.0) -> tuple[int, int]:
    """Return the (H, W) a photo is resized to, times `scale`. A single window gets whole patches, to avoid padding."""
    height, width = size
    if protocol.short_side is not None:
        height, width = keep_ratio_size(height, width, protocol.short_side, protocol.long_side)
    if scale != 1.0:
        height, width = (max(1, round(scale * side)) for side in (height, width))
    if protocol.crop is None:
        height, width = (max(1, round(side / patch)) * patch for side in (height, width))
    return height, width


def feed(
    rgb: np.ndarray, backbone: Backbone, protocol: InferenceProtocol, scale: float = 1.0
) -> tuple[torch.Tensor, WindowGrid]:
    """Return a uint8 RGB photo as normalised pixels (1, 3, H, W), with its windows."""
    patch = backbone.patch_size
    size = fed_size((rgb.shape[0], rgb.shape[1]), protocol, patch, scale)
    windows = WindowGrid.place(*size, protocol.crop, protocol.stride, patch, protocol.blend)
    windows.require_plan(rgb.shape[0], rgb.shape[1])  # fail before the model runs, not after
    return backbone.normalize(resize(rgb, size))[None], windows


def patch_grid(backbone: Backbone) -> tuple[int, int]:
    """Return how many patches (h, w) a picture has at the training size."""
    height, width = backbone.picture_size
    return height // backbone.patch_size, width // backbone.patch_size


def whole_pictures(backbone: Embeds, pictures: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Normalise whole uint8 RGB pictures (H, W, 3) at the training size: float (3, S, S) each.

    They are resized without a crop, so that nothing at the borders is lost.
    """
    return [backbone.normalize(shrink(picture, backbone.picture_size)) for picture in pictures]


def embed_images(backbone: Embeds, pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """Encode whole uint8 RGB pictures (H, W, 3) to embeddings (N, D) float32, not normalised; see `whole_pictures`."""
    pixels = whole_pictures(backbone, pictures)
    starts = range(0, len(pixels), BATCH)
    rows = torch.cat([backbone.encode_image(torch.stack(pixels[at : at + BATCH])) for at in starts]).float()
    require_finite(rows, f"image embeddings of model '{backbone.name}'")
    return rows
