"""The evidence in a batch before anything is combined: text margins, feature levels, distances to a memory.

Shape letters: B images, h/w patch grid, y/x windows, E joint space, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from densevl.anomaly.harmonic import mix_probabilities, soft_min, spread_distances, spread_windows
from densevl.anomaly.memory.nearest import NearestMemory
from densevl.anomaly.scoring import Scoring
from densevl.anomaly.tokens import Pass, layers_at
from densevl.anomaly.windows import window_embeddings, window_side
from densevl.recipes.recipe import Recipe

Windows = Mapping[int, torch.Tensor]
WINDOW = "window"


def all_windows(seen: Pass, scoring: Scoring, recipe: Recipe | None, with_memory: bool) -> dict[int, torch.Tensor]:
    """Embeddings (B, y, x, E) of the windows that text or memory needs, by scale, computed once."""
    if scoring.text != "windows" and not (with_memory and "windows" in scoring.memory):
        return {}
    dense = seen.rewired(recipe).features if scoring.windows == "pooled" and recipe is not None else None
    return {scale: window_embeddings(seen, scale, scoring.windows, dense) for scale in scoring.scales}


def margin(features: torch.Tensor, prototypes_2E: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logit of "anomalous" against "normal" for features (..., E): (...), cosines over the temperature."""
    cosines = F.normalize(features.float(), dim=-1) @ prototypes_2E.to(features.device).float().mT
    return (cosines[..., 1] - cosines[..., 0]) / temperature


def text_margins(
    seen: Pass, windows: Windows, prototypes_2E: torch.Tensor, scoring: Scoring, recipe: Recipe | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Text logits of the places and of the image, (B, h, w) and (B,), float32.

    Args:
        recipe: for dense features; None reads V-V streams.
    """
    image_B = margin(seen.image(), prototypes_2E, scoring.temperature)
    if scoring.text == "dense":
        return _dense(seen, prototypes_2E, scoring, recipe), image_B
    sign = 1.0 if scoring.polarity == "conservative" else -1.0
    scales = []
    for scale, found in windows.items():
        own = margin(found, prototypes_2E, scoring.temperature)
        scales.append(spread_windows(sign * own, window_side(scale, seen.grid)))
    if scoring.whole:
        scales.append((sign * image_B)[:, None, None].expand_as(scales[0]))
    return sign * soft_min(scales), image_B


def _dense(seen: Pass, prototypes_2E: torch.Tensor, scoring: Scoring, recipe: Recipe | None) -> torch.Tensor:
    if recipe is not None:
        scores = seen.rewired(recipe).score(prototypes_2E)
        return (scores[..., 1] - scores[..., 0]) / scoring.temperature
    depth = len(seen.outputs) - 1
    layers = layers_at(scoring.text_layers, depth)
    streams = seen.value_streams(depth - min(layers) + 1, layers)
    return mix_probabilities(
        [margin(stream.permute(0, 2, 3, 1), prototypes_2E, scoring.temperature) for stream in streams]
    )


def tower_levels(seen: Pass, windows: Windows, scoring: Scoring, patches: bool = True) -> dict[str, torch.Tensor]:
    """Features to store or to look up, (B, rows, columns, D) by level: "layer12", "layer6+layer9", "window2".

    Args:
        patches: whether patch tokens come from this tower rather than a proxy.
    """
    levels: dict[str, torch.Tensor] = {}
    if patches and "patch" in scoring.memory:
        layers = layers_at(scoring.layers, seen.tower.depth)
        found = {f"layer{layer}": seen.patches(layer, scoring.stage) for layer in layers}
        levels |= patch_levels(found, scoring)
    if "windows" in scoring.memory:
        levels |= {f"{WINDOW}{scale}": found for scale, found in windows.items()}
    return levels


def patch_levels(found: Mapping[str, torch.Tensor], scoring: Scoring) -> dict[str, torch.Tensor]:
    """Patch features (B, D, h, w), averaged with neighbours and joined as the scoring asks: (B, h, w, D) by level."""
    reach = scoring.around // 2
    if reach:
        found = {
            name: F.avg_pool2d(features, scoring.around, 1, reach, count_include_pad=False)
            for name, features in found.items()
        }
    if scoring.joined and len(found) > 1:
        found = {"+".join(found): torch.cat(list(found.values()), dim=1)}
    return {name: features.permute(0, 2, 3, 1) for name, features in found.items()}


def distances(
    levels: Mapping[str, torch.Tensor],
    memories: Mapping[str, NearestMemory],
    scoring: Scoring,
    grid: tuple[int, int],
) -> dict[str, torch.Tensor]:
    """Distance of each place to its nearest normal one, (B, h, w) by level: (1 - cos) / 2 in 0..1, or Euclidean.

    `grid` is the tower's. Levels of windows are spread to patches by their harmonic mean.
    """
    found = {}
    for name, features in levels.items():
        nearest = memories[name].look_up(features, scoring.near)[0]
        nearest = nearest / 2 if scoring.metric == "cosine" else nearest
        if name.startswith(WINDOW):
            nearest = spread_distances(nearest, window_side(int(name.removeprefix(WINDOW)), grid))
        found[name] = nearest
    return found


def combine_levels(found: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The mean of the levels, patch layers counting as one level together: (B, h, w) on the finest grid."""
    patch = [values for name, values in found.items() if not name.startswith(WINDOW)]
    levels = [values for name, values in found.items() if name.startswith(WINDOW)]
    if patch:
        levels.insert(0, torch.stack(patch).mean(dim=0))
    size = max((level.shape[1:] for level in levels), key=lambda grid: grid[0] * grid[1])
    return torch.stack([on_grid(level, (size[0], size[1])) for level in levels]).mean(dim=0)


def on_grid(values_Bhw: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Resample a map to another grid bilinearly."""
    if tuple(values_Bhw.shape[1:]) == grid:
        return values_Bhw
    return F.interpolate(values_Bhw[:, None], size=grid, mode="bilinear", align_corners=False)[:, 0]
