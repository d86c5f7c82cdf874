"""Running a backbone over windows: batched passes, scores on the patch grid.

Shape letters: B batch, T text queries, H/W pixels, Y/X window tokens per axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from densevl.errors import ImageError, LabelError
from densevl.inference.windows import WindowGrid
from densevl.kernels.reference import dense_scores

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone
    from densevl.recipes import Recipe

# Windows per pass. On a CPU a larger batch falls out of the cache: with ViT-B/16 each of 8 costs 5 % more than of 4.
WINDOW_BATCH = {"cpu": 4, "cuda": 64}


@torch.no_grad()
def window_scores(
    backbone: Backbone,
    pixels: torch.Tensor,
    text_TD: torch.Tensor,
    windows: WindowGrid,
    *,
    recipe: str | Recipe | None = None,
    position_rule: str | None = None,
    batch: int | None = None,
) -> torch.Tensor:
    """Score T texts at every token of every window: (B, Y, X, T) float32, windows laid as a block matrix.

    Args:
        backbone: the model; pixels: (B, 3, H, W) normalised; text_TD: (T, D) unit rows; windows: the grid on H x W.
        recipe, position_rule: as `Backbone.encode_dense` takes them.
        batch: windows per pass of the tower, None for the device's own; the result does not depend on it.
    """
    batch = batch or WINDOW_BATCH.get(backbone.device.type, WINDOW_BATCH["cpu"])
    parts = [
        backbone.score(backbone.encode_dense(part, recipe, position_rule=position_rule), text_TD)
        for part in windows.batches(pixels, batch)
    ]
    return windows.assemble(torch.cat(parts), len(pixels))


def slide(
    backbone: Backbone,
    pixels: torch.Tensor,
    text: torch.Tensor | Sequence[str],
    *,
    recipe: str | Recipe | None = None,
    crop: int | None = 224,
    stride: int = 112,
    size: tuple[int, int] | None = None,
    blend: str = "pixel",
    position_rule: str | None = None,
    batch: int | None = None,
) -> torch.Tensor:
    """The papers' sliding-window protocol: full score maps.

    Per window: scores on the patch grid, upsampled bilinearly to the window; summed where windows overlap and divided
    by their count; resized bilinearly to `size`. This is the one call that builds the whole volume; `Segmenter`
    decodes without it.

    Args:
        backbone: the model.
        pixels: (B, 3, H, W) normalised float, any H and W.
        text: (T, D) embeddings, normalised here, or T strings, encoded as they are.
        recipe: name or `Recipe`; None takes the backbone's default.
        crop: window side in pixels, None for one window over the whole image; stride: step in pixels.
        size: (height, width) of the output, None for (H, W).
        blend: where overlaps are averaged, "pixel" or "patch" (see `windows`).
        position_rule: see `Backbone.encode_dense`.
        batch: windows per pass, None for the device's own.

    Returns:
        (B, T, H, W) float32: cosines for a CLIP backbone.

    Raises:
        LabelError: no text, or text of another model. ImageError: pixels of another shape. ProtocolError: impossible
        windows. RecipeError: unknown or unfitting recipe.
    """
    if isinstance(text, str):
        raise LabelError(f"text is one string, '{text[:40]}'; give a list of strings")
    if len(text) == 0:
        raise LabelError("no text to score; give at least one string or embedding")
    if pixels.ndim != 4:
        raise ImageError(f"pixels have shape {tuple(pixels.shape)}; slide takes (B, 3, H, W)")
    embeddings = text if isinstance(text, torch.Tensor) else backbone.encode_text(list(text))
    if embeddings.shape[-1] != backbone.embed_dim:
        raise LabelError(
            f"text embeddings are {embeddings.shape[-1]} wide, model '{backbone.name}' has {backbone.embed_dim}; "
            "encode them with the same model"
        )
    unit_TD = F.normalize(embeddings.float().to(backbone.device), dim=-1)
    height, width = pixels.shape[-2:]
    windows = WindowGrid.place(height, width, crop, stride, backbone.patch_size, blend)
    scores = window_scores(backbone, pixels, unit_TD, windows, recipe=recipe, position_rule=position_rule, batch=batch)
    return dense_scores(scores, windows.plan(*(size or (height, width))))
