"""timm's convolutional and windowed towers inside open_clip: ConvNeXt, FastViT (MobileCLIP), Swin.

They run whole up to their last map. Their head pools first, so a single place is read by giving the head a map of that
place only.
"""

from __future__ import annotations

from typing import Any

import torch

from densevl.backbones.towers.timm_vit import embed_dim, wrong_size
from densevl.errors import ModelError, RecipeError
from densevl.recipes.blocks import Block
from densevl.recipes.tower import Grid


class Undivided:
    """A tower that has no blocks to rewire."""

    kind: str
    reads_cls = False
    depth = 0

    def run(self, index: int, x_BND: torch.Tensor, grid: Grid) -> torch.Tensor:
        raise RecipeError(f"block {index} is asked for; the tower is {self.kind}")

    def view(self, index: int, grid: Grid) -> Block:
        raise RecipeError(f"block {index} is asked for; the tower is {self.kind}")


class WholeTower(Undivided):
    """open_clip's `TimmModel` around a trunk with a final map: no blocks, one token per place of the map."""

    prefix = 0

    def __init__(self, visual: Any, name: str) -> None:
        """Inspect a built tower; nothing is copied.

        Raises:
            ModelError: the head's pool depends on where a place is.
        """
        trunk = visual.trunk
        if hasattr(visual.head, "pool"):
            raise ModelError(
                f"model '{name}' gives no dense features: its {type(visual.head.pool).__name__} cannot read a place "
                "alone; use a native ViT, ViT-B-16/openai"
            )
        self._visual, self._trunk, self._name = visual, trunk, name
        self._channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        self._fixed = getattr(getattr(trunk, "patch_embed", None), "strict_img_size", False)
        self.kind = f"a {type(trunk).__name__}, a tower of convolutions or windows that runs as a whole"
        self.patch_size = trunk.feature_info[-1]["reduction"]
        self.embed_dim = embed_dim(visual)
        self.image_size = tuple(trunk.patch_embed.img_size) if self._fixed else tuple(visual.image_size)

    def embed(self, pixels: torch.Tensor, rule: str) -> torch.Tensor:
        if self._fixed and tuple(pixels.shape[2:]) != self.image_size:
            raise wrong_size(pixels, self.image_size, self.kind)
        x = self._trunk.forward_features(pixels.to(next(self._trunk.parameters()).dtype))
        if self._channels_last and x.ndim == 4:
            x = x.permute(0, 3, 1, 2)
        grid = pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size
        if x.ndim != 4 or x.shape[2:] != grid:
            raise ModelError(
                f"model '{self._name}' gives no dense features: its {type(self._trunk).__name__} ends in "
                f"{tuple(x.shape)}, not in a map; use a native ViT, ViT-B-16/openai"
            )
        return x.flatten(2).transpose(1, 2)

    def read(self, y_BND: torch.Tensor) -> torch.Tensor:
        return self._head(y_BND.flatten(0, 1)[:, None]).unflatten(0, y_BND.shape[:2])

    def pool(self, x_BND: torch.Tensor) -> torch.Tensor:
        return self._head(x_BND)

    def _head(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Run the head on N places as a column; its pool ignores their arrangement."""
        column = x_BND[:, :, None] if self._channels_last else x_BND.transpose(1, 2)[..., None]
        return self._visual.head(self._trunk.forward_head(column))
