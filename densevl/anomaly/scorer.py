"""`Scorer`: pixels to evidence, and evidence to maps and image scores, by one `Scoring`; knows no files.

Shape letters: B images, h/w patch grid, y/x windows, D width, E joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from densevl.anomaly.evidence import (
    WINDOW,
    all_windows,
    combine_levels,
    distances,
    on_grid,
    patch_levels,
    text_margins,
    tower_levels,
)
from densevl.anomaly.fusing import Spread, fuse, image_score
from densevl.anomaly.harmonic import mix_probabilities
from densevl.anomaly.maps import smooth
from densevl.anomaly.memory.foreground import foreground, shows_object
from densevl.anomaly.memory.nearest import NearestMemory
from densevl.anomaly.scoring import Scoring
from densevl.anomaly.tiling import look_by_tiles
from densevl.anomaly.tokens import layers_at, run
from densevl.anomaly.trained.adapters import Adapters
from densevl.recipes.recipe import Recipe
from densevl.recipes.tower import Tower

if TYPE_CHECKING:
    from densevl.backbones import Backbone
    from densevl.backbones.proxies import Proxy

Memories = Mapping[str, NearestMemory]


@dataclass(frozen=True, eq=False)
class Looked:
    """Evidence of a batch: text logits (B, h, w) and (B,), or None; features (B, y, x, D) by level.

    `grid` is the tower's, of a tile if there are any; `object` is a bool mask (B, h, w), or None if it is not needed.
    """

    text: torch.Tensor | None
    image: torch.Tensor | None
    levels: dict[str, torch.Tensor]
    grid: tuple[int, int]
    object: torch.Tensor | None = None

    def one(self, index: int) -> Looked:
        """The evidence of one image of the batch, in memory of its own."""
        part = slice(index, index + 1)
        text, image, mask = (
            None if values is None else values[part].clone() for values in (self.text, self.image, self.object)
        )
        return Looked(text, image, {k: v[part].clone() for k, v in self.levels.items()}, self.grid, mask)


@dataclass(eq=False)
class Scorer:
    """One way of scoring with one backbone.

    Attributes:
        tower: the backbone's, or None if it is not a CLIP. proxy: its features are stored instead, or None.
        size: the short side of images as fed. prototypes: computes the (2, E) unit rows of the words on first use.
        recipe: for dense features; None reads V-V streams.
        spread: of normal scores, for fuse "standard". adapters: trained, for text "adapters".
        tile: side in pixels of the square tiles into which larger images are cut, or None.
        masked: whether the background of an image counts as normal.
    """

    backbone: Backbone
    tower: Tower | None
    proxy: Proxy | None
    scoring: Scoring
    size: int
    prototypes: Callable[[], torch.Tensor]
    recipe: Recipe | None = None
    spread: Spread | None = None
    adapters: Adapters | None = None
    tile: int | None = None
    masked: bool = False

    @torch.no_grad()
    def look(self, pixels: torch.Tensor, with_memory: bool) -> Looked:
        """Run the tower once, tile by tile if so set, and the proxy if features are needed for a memory."""
        if self.tile is not None and max(pixels.shape[2:]) > self.tile:
            patch = self.backbone.patch_size
            overlap = max(self.tile // patch // 3, *(scale - 1 for scale in self.scoring.scales))
            seen = look_by_tiles(lambda part: self._look(part, with_memory), pixels, self.tile, patch, overlap)
        else:
            seen = self._look(pixels, with_memory)
        patches = [values for level, values in seen.levels.items() if not level.startswith(WINDOW)]
        return replace(seen, object=foreground(patches[-1])) if self.scoring.foreground and patches else seen

    def _look(self, pixels: torch.Tensor, with_memory: bool) -> Looked:
        text = image = None
        levels: dict[str, torch.Tensor] = {}
        grid = (1, 1)
        if self.tower is not None and (self.scoring.is_textual or self.proxy is None):
            needs_all = self.scoring.is_textual or "windows" in self.scoring.memory
            seen = run(
                self.tower, pixels, last=None if needs_all else max(layers_at(self.scoring.layers, self.tower.depth))
            )
            grid = seen.grid
            windows = all_windows(seen, self.scoring, self.recipe, with_memory)
            if self.scoring.text == "adapters" and self.adapters is not None:
                recipe = self.recipe
                dense = (
                    seen.patches(len(seen.outputs) - 1, "joint") if recipe is None else seen.rewired(recipe).features
                )
                text, image = self.adapters.text(seen.image(), dense.float().permute(0, 2, 3, 1))
            elif self.scoring.is_textual:
                text, image = text_margins(seen, windows, self.prototypes(), self.scoring, self.recipe)
            if with_memory:
                levels = tower_levels(seen, windows, self.scoring, patches=self.proxy is None)
        if with_memory and "patch" in self.scoring.memory:
            other: torch.Tensor | None = None
            if self.proxy is not None:
                other = self.proxy.from_clip(pixels, self.backbone.mean, self.backbone.std)
            elif self.tower is None:
                other = self.backbone.encode_dense(pixels).features
            if other is not None:
                levels |= patch_levels({"proxy": other.float()}, self.scoring)
        return Looked(text, image, levels, grid)

    def distance(self, looked: Looked, memories: Memories) -> torch.Tensor:
        """Distance of each place to its nearest normal one, over all levels: (B, h, w); 0 for background."""
        found = combine_levels(distances(looked.levels, memories, self.scoring, looked.grid))
        if not self.masked or looked.object is None:
            return found
        # An image without a detected object is judged whole, so that a failed mask hides nothing.
        kept = looked.object | ~shows_object(looked.object)[:, None, None]
        return found * (on_grid(kept.float(), (found.shape[1], found.shape[2])) > 0.5)

    @torch.no_grad()
    def judge(
        self, looked: Looked, memories: Memories, distance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Score the evidence, with memories or none ({}).

        Args:
            distance: the result of `distance`, if it is known.

        Returns:
            The raw maps (B, h, w), image scores (B,), and the parts by name: "memory" distances, "text" probabilities
            and "text_logit", (B, h, w) each.

        Raises:
            ModelError: there are neither words nor memories, or fuse "standard" lacks the spread.
        """
        scoring, text, image = self.scoring, looked.text, looked.image
        memory = self.distance(looked, memories) if distance is None and memories else distance
        parts = {}
        if memory is not None:
            parts["memory"] = memory
            if self.adapters is not None and text is not None and image is not None:
                places, whole = self.adapters.compare(looked.levels, memories, scoring.near)
                text, image = mix_probabilities([text, places]), mix_probabilities([image, whole])
            text = on_grid(text, (memory.shape[1], memory.shape[2])) if text is not None else None
        if text is not None:
            parts |= {"text": text.sigmoid(), "text_logit": text}
        raw = fuse(text, memory, scoring, self.spread)
        scores = image_score(image, raw, memory, scoring)
        if scoring.reweigh and len(memories) == 1:
            level, own = next(iter(memories.items()))
            rows = looked.levels[level].flatten(1, 2)
            scores = scores * torch.stack([own.weight(image, scoring.reweigh) for image in rows]).to(scores)
        cells = self.size / min(raw.shape[1:])  # pixels, as fed, per cell of the map
        return smooth(raw, scoring.smooth / cells), scores, parts
