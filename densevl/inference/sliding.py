"""Run a backbone over windows: batched passes, scores on the patch grid.

Shape letters: B batch, T text queries, H/W pixels, Y/X window tokens per axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from densevl.backbones.base import Backbone
from densevl.errors import ImageError, LabelError, ProtocolError, one_of
from densevl.inference.cutting import batches
from densevl.inference.spreading import spread_scores
from densevl.inference.stitching import encode_stitched
from densevl.inference.windows import WindowGrid
from densevl.kernels import dense_scores
from densevl.recipes import Hints, Recipe
from densevl.recipes.features import DenseFeatures
from densevl.vocabulary.template_weights import weighted_scores

# The size of a pass. On a CPU, time is within 3 % from 600 to 2,400 tokens, but memory grows with them.
CPU_TOKENS, CPU_WINDOWS, WINDOWS = 1200, 8, 64
PROXY_SCOPES = ("image", "window")


def windows_a_pass(backbone: Backbone, windows: WindowGrid) -> int:
    """Return how many windows run together on the model's device."""
    if backbone.device.type != "cpu":
        return WINDOWS
    return min(max(CPU_TOKENS // (windows.rows.tokens * windows.cols.tokens), 1), CPU_WINDOWS)


def token_scores(
    backbone: Backbone,
    dense: DenseFeatures,
    text_TD: torch.Tensor,
    foreground_T: torch.Tensor | None = None,
    prompts_MTD: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score T texts at every token of a pass: (B, h, w, T) float32; see `Backbone.score`.

    Args:
        prompts_MTD: unit rows of M templates, used instead of `text_TD`: each token weighs them by how well they suit
            it (AutoCLIP, see `vocabulary.template_weights`); None uses `text_TD`.
    """
    if prompts_MTD is None:
        return backbone.score(dense, text_TD, foreground_T)
    return weighted_scores(lambda rows_TD: backbone.score(dense, rows_TD, foreground_T), prompts_MTD)


@torch.no_grad()
def window_scores(
    backbone: Backbone,
    pixels: torch.Tensor,
    text_TD: torch.Tensor,
    windows: WindowGrid,
    *,
    recipe: str | Recipe | None = None,
    hints: Hints | None = None,
    batch: int | None = None,
    proxy_scope: str = "image",
    foreground_T: torch.Tensor | None = None,
    prompts_MTD: torch.Tensor | None = None,
    tell: Callable[[DenseFeatures], None] | None = None,
) -> tuple[torch.Tensor, WindowGrid]:
    """Score T texts at every token of every window: (B, Y, X, T) float32, and the grid of windows for these scores.

    Args:
        backbone: the model. pixels: (B, 3, H, W) normalised. text_TD: (T, D) unit rows. windows: the grid on H x W.
        recipe: as for `Backbone.encode_dense`; `backbone.resolve` makes a variant.
        hints: inputs of the recipe for the whole image; the text is set here.
        batch: windows per pass of the tower; None is the device's default. The result does not depend on it.
        proxy_scope: "image" runs the proxy once on the whole image, "window" on each window, as the papers do.
        foreground_T: (T,) bool, which rows are classes and not background words; None is all.
        prompts_MTD: see `token_scores`.
        tell: called with the features of each pass, in the order of the windows; if the recipe stitches, once with
            those of the whole image.

    Returns:
        Scores, with windows laid out as a block matrix, and their grid. It is `windows` itself, `windows` with the
        tokens of a proxy's finer grid, or one window over the whole image if the recipe stitches.

    Raises:
        ProtocolError: If proxy_scope is unknown, or the recipe cannot run on these windows.
        RecipeError: If the recipe does not fit, or lacks an input.
    """
    one_of(proxy_scope, PROXY_SCOPES, "proxy_scope", ProtocolError)
    if (windows.rows.length, windows.cols.length) != tuple(pixels.shape[-2:]):
        raise ProtocolError(
            f"windows are laid on {windows.rows.length}x{windows.cols.length} pixels, and the image has "
            f"{pixels.shape[-2]}x{pixels.shape[-1]}; place them on the image's size"
        )
    batch = batch or windows_a_pass(backbone, windows)
    chosen = backbone.resolve(recipe)
    hints = replace(hints or Hints(), text=text_TD)
    stitches = chosen is not None and chosen.stitch is not None
    # Heads that read the tower's own tokens can only look at a window.
    if chosen is not None and (proxy_scope == "image" or stitches) and not hasattr(hints.proxy, "from_tower"):
        hints = backbone.look(pixels, chosen, hints)
    if chosen is not None and stitches:
        dense, whole = encode_stitched(backbone, pixels, windows, chosen, hints, batch)
        if tell is not None:
            tell(dense)
        return token_scores(backbone, dense, text_TD, foreground_T, prompts_MTD), whole
    parts = []
    for part, own in batches(pixels, windows, hints, batch):
        dense = backbone.encode_dense(part, chosen, hints=own)
        parts.append(token_scores(backbone, dense, text_TD, foreground_T, prompts_MTD))
        if tell is not None:
            tell(dense)
    grid = windows.with_tokens(*parts[0].shape[1:3])
    if chosen is not None and chosen.spread is not None:
        features = backbone.look(pixels, chosen, hints).proxy  # of the whole image, whatever the scope
        parts = [spread_scores(torch.cat(parts), chosen.spread, features, grid)]
    return grid.assemble(torch.cat(parts), pixels.shape[0]), grid


def slide(
    backbone: Backbone,
    pixels: torch.Tensor,
    text: torch.Tensor | Sequence[str],
    *,
    recipe: str | Recipe | None = None,
    crop: int | None = 224,
    stride: int | None = 112,
    size: tuple[int, int] | None = None,
    blend: str = "pixel",
    batch: int | None = None,
    proxy_scope: str = "window",
    hints: Hints | None = None,
    position_rule: str | None = None,
    compat: bool = False,
) -> torch.Tensor:
    """Run the papers' sliding-window protocol and return full score maps.

    Each window is scored on the patch grid and upsampled bilinearly to its pixels. Scores are summed where windows
    overlap, divided by their count, and resized bilinearly to `size`. Only this function builds the whole volume;
    `Segmenter` decodes without it.

    Args:
        backbone: the model.
        pixels: (B, 3, H, W) normalised float, any H and W.
        text: (T, D) embeddings, normalised here, or T strings, encoded as they are.
        recipe: name or `Recipe`; None takes the backbone's default.
        crop: window side in pixels; None is one window over the whole image. stride: step in pixels; None is tiles
            (see `windows`).
        size: (height, width) of the output; None is (H, W).
        blend: where overlaps are averaged, "pixel" or "patch" (see `windows`); recipes that stitch use "patch".
        batch: windows per pass; None is the device's default.
        proxy_scope: "window" runs the proxy on each window, as the papers do; "image" once on the whole image.
        hints: inputs of the recipe for the whole image.
        position_rule, compat: as for `Backbone.encode_dense`.

    Returns:
        (B, T, H, W) float32: cosines for a CLIP backbone.

    Raises:
        LabelError: If there is no text, or its embeddings are of another model.
        ImageError: If the pixels have another shape.
        ProtocolError: If the windows are impossible.
        RecipeError: If the recipe is unknown or does not fit.
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
    chosen = backbone.resolve(recipe, position_rule=position_rule, compat=compat)
    blend = "patch" if chosen is not None and chosen.stitch is not None else blend
    windows = WindowGrid.place(height, width, crop, stride, backbone.patch_size, blend)
    scores, grid = window_scores(
        backbone, pixels, unit_TD, windows, recipe=chosen, hints=hints, batch=batch, proxy_scope=proxy_scope
    )
    return dense_scores(scores, grid.plan(*(size or (height, width))))
